_base_ = [
    '../_base_/models/dcal_vit.py',
    '../_base_/datasets/veri776_256x256_re08.py',
    '../_base_/schedules/dcal_sgd_120e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        arch='deit-small',
        img_size=(256, 256),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth',
            source='deit',
        ),
    ),
    head=dict(num_classes=576, in_channels=384),
)
