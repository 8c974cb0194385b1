_base_ = [
    '../_base_/models/dcal_vit.py',
    '../_base_/datasets/msmt17_256x128_re08.py',
    '../_base_/schedules/dcal_sgd_120e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        arch='deit-tiny',
        img_size=(256, 128),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/deit/deit_tiny_patch16_224-a1311bcf.pth',
            source='deit',
        ),
    ),
    head=dict(num_classes=1041, in_channels=192),
)
