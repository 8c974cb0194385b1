_base_ = [
    '../_base_/models/dcal_vit.py',
    '../_base_/datasets/market1501_256x128_re08.py',
    '../_base_/schedules/dcal_sgd_120e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        arch='deit-small',
        img_size=(256, 128),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth',
            source='deit',
        ),
    ),
    head=dict(num_classes=751, in_channels=384),
)
