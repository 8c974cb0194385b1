_base_ = './ofq-w4a4_deit-small_8xb100-300e_in1k-224.py'

model = dict(backbone=dict(quant_cfg=dict(w_bits=3, a_bits=3)))
