_base_ = [
    '../_base_/models/dcal_vit_fgvc.py',
    '../_base_/datasets/fgvcaircraft_448x448.py',
    '../_base_/schedules/dcal_adamw_100e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        arch='deit-tiny',
        img_size=448,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/deit/deit_tiny_patch16_224-a1311bcf.pth',
            source='deit',
        ),
    ),
    head=dict(num_classes=100, in_channels=192),
)
