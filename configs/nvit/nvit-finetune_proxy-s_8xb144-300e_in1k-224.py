# NViT's fine-tuning of what pruning left: the recipe of the pruning of DeiT-B.
# Its own model is a stand-in of NViT-S's published cost, not the official architecture.
_base_ = [
    '../_base_/models/nvit_deit-base-distilled.py',
    '../_base_/datasets/imagenet_224_mctf.py',
    '../_base_/schedules/nvit_adamw.py',
    '../_base_/nvit_cnn_distillation.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='proxy-s', drop_path_rate=0.0),
    head=dict(in_channels=432),
)
train_dataloader = dict(batch_size=144)

heads = dict(cls='head.layers.head', dist='head.layers.head_dist')
custom_hooks = [
    {{_base_.cnn_distillation}},
    dict(
        type='DistillationHook',
        losses=dict(loss_full=dict(type='FullModelLoss', temperature=20.0, per_head=True)),
        teacher='{{ fileDirname }}/../_base_/models/nvit_deit-base-distilled.py',
        teacher_checkpoint='deit-base-distilled.pth',
        taps=dict(
            student_cls=heads['cls'],
            student_dist=heads['dist'],
            teacher_cls=heads['cls'],
            teacher_dist=heads['dist'],
        ),
    ),
]

optim_wrapper = dict(optimizer=dict(lr=4.5e-4))  # 2e-4 a total batch of 512
param_scheduler = dict(type='CosineAnnealingLR', T_max=300, eta_min=1e-5, by_epoch=True)
train_cfg = dict(max_epochs=300, val_interval=10)
auto_scale_lr = dict(base_batch_size=1152)
