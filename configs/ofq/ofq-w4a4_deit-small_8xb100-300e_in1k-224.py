_base_ = '../_base_/ofq_deit-small.py'

model = dict(
    backbone=dict(quant_cfg=dict(w_bits=4, a_bits=4)),
    head=dict(
        loss=dict(type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    train_cfg=dict(
        augments=[
            dict(type='mmpretrain.Mixup', alpha=0.8),
            dict(type='mmpretrain.CutMix', alpha=1.0),
        ],
    ),
)

train_dataloader = dict(batch_size=100)
optim_wrapper = dict(optimizer=dict(lr=0.00032, weight_decay=0.0))
param_scheduler = dict(
    _delete_=True, type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, end=300
)
auto_scale_lr = dict(base_batch_size=800)
