_base_ = [
    '../_base_/models/upernet_swin.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/adamw_seg_240k.py',
    '../_base_/seg_runtime.py',
]

model = dict(
    backbone=dict(
        arch='base',
        init_cfg=dict(
            checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
            'swin_base_patch4_window7_224.pth'
        ),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
