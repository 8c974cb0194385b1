_base_ = '../_base_/ofq_swin-tiny.py'

model = dict(backbone=dict(quant_cfg=dict(w_bits=2, a_bits=2)))

optim_wrapper = dict(optimizer=dict(lr=0.0005))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6 / 0.0005, by_epoch=True, end=5),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300),
]
