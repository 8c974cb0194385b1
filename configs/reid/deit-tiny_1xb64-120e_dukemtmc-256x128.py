_base_ = './deit-small_1xb64-120e_dukemtmc-256x128.py'

model = dict(
    backbone=dict(
        arch='deit-tiny',
        init_cfg=dict(
            checkpoint='https://dl.fbaipublicfiles.com/deit/deit_tiny_distilled_patch16_224-b40b3cf7.pth',
        ),
    ),
    head=dict(in_channels=192),
)
