_base_ = '../_base_/ofq_swin-tiny.py'

model = dict(
    backbone=dict(quant_cfg=dict(w_bits=4, a_bits=4)),
    head=dict(loss=dict(type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
    train_cfg=dict(
        augments=[
            dict(type='mmpretrain.Mixup', alpha=0.8),
            dict(type='mmpretrain.CutMix', alpha=1.0),
        ],
    ),
)

optim_wrapper = dict(optimizer=dict(lr=0.0002, weight_decay=0.0))
param_scheduler = dict(
    _delete_=True, type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, end=300
)
