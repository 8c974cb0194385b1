_base_ = [
    '../_base_/models/dcal_vit_fgvc.py',
    '../_base_/datasets/stanfordcars_448x448.py',
    '../_base_/schedules/dcal_adamw_100e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        arch='vit-base',
        img_size=448,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/jx_vit_base_patch16_224_in21k-e5005f0a.pth',
            source='timm',
        ),
    ),
    head=dict(num_classes=196, in_channels=768),
)
