_base_ = [
    '../_base_/models/upernet_swin.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/adamw_seg_240k.py',
    '../_base_/seg_runtime.py',
]

model = dict(
    backbone=dict(
        depths=[2, 2, 18, 2],
        init_cfg=dict(checkpoint='checkpoints/swin-s_in1k.pth'),
    ),
)
