_base_ = [
    '../_base_/models/upernet_swin.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/adamw_seg_240k.py',
    '../_base_/seg_runtime.py',
]

model = dict(
    backbone=dict(
        arch='small',
        init_cfg=dict(
            checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
            'swin_small_patch4_window7_224.pth'
        ),
    ),
)
