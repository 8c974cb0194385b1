# ReViT-S from scratch, with hard distillation by a CNN.
_base_ = [
    '../_base_/models/nvit_deit-base-distilled.py',
    '../_base_/datasets/imagenet_224_mctf.py',
    '../_base_/schedules/nvit_adamw.py',
    '../_base_/nvit_cnn_distillation.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='revit-s'),
    head=dict(in_channels=384, loss_on='cls'),
)
train_dataloader = dict(batch_size=32)

custom_hooks = [{{_base_.cnn_distillation}}]

optim_wrapper = dict(optimizer=dict(lr=2.5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.004, by_epoch=True, begin=0, end=5),
    dict(type='CosineAnnealingLR', T_max=295, eta_min=1e-5, by_epoch=True, begin=5, end=300),
]
train_cfg = dict(max_epochs=300, val_interval=10)
auto_scale_lr = dict(base_batch_size=256)
