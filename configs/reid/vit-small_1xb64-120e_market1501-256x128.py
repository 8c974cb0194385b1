_base_ = [
    '../_base_/models/reid_vit.py',
    '../_base_/datasets/market1501_256x128_re08.py',
    '../_base_/schedules/transreid_sgd_120e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        arch='vit-small',
        img_size=(256, 128),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/vit_small_p16_224-15ec54c9.pth',
            source='timm',
        ),
    ),
    head=dict(num_classes=751, in_channels=768),
)
