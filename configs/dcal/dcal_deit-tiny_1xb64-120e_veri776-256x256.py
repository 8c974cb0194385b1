_base_ = [
    '../_base_/models/dcal_vit.py',
    '../_base_/datasets/veri776_256x256_re08.py',
    '../_base_/schedules/dcal_sgd_120e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        arch='deit-tiny',
        img_size=(256, 256),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/deit/deit_tiny_patch16_224-a1311bcf.pth',
            source='deit',
        ),
    ),
    head=dict(num_classes=576, in_channels=192),
)
