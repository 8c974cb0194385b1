_base_ = [
    '../_base_/models/dcal_vit_fgvc.py',
    '../_base_/datasets/stanfordcars_448x448.py',
    '../_base_/schedules/dcal_adamw_100e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        arch='deit-base',
        img_size=448,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth',
            source='deit',
        ),
    ),
    head=dict(num_classes=196, in_channels=768),
)
