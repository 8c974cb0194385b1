_base_ = [
    '../_base_/models/reid_vit.py',
    '../_base_/datasets/occluded_duke_256x128.py',
    '../_base_/schedules/transreid_sgd_120e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        arch='vit-base',
        img_size=(256, 128),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/jx_vit_base_p16_224-80ecf9dd.pth',
            source='timm',
        ),
    ),
    head=dict(num_classes=702, in_channels=768),
)
