_base_ = './ofq-w4a4_deit-tiny_4xb140-300e_in1k-224.py'

model = dict(backbone=dict(quant_cfg=dict(w_bits=2, a_bits=2)))
