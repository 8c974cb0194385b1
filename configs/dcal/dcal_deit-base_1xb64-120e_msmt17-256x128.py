_base_ = [
    '../_base_/models/dcal_vit.py',
    '../_base_/datasets/msmt17_256x128_re08.py',
    '../_base_/schedules/dcal_sgd_120e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        arch='deit-base',
        img_size=(256, 128),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth',
            source='deit',
        ),
    ),
    head=dict(num_classes=1041, in_channels=768),
)
