_base_ = './smmix_pvt-tiny_4xb256-300e_in1k.py'

model = dict(backbone=dict(arch='small'))
