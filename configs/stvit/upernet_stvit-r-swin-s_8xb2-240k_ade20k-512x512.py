_base_ = [
    '../_base_/models/upernet_stvit-r-swin.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/adamw_seg_240k.py',
    '../_base_/seg_runtime.py',
]

model = dict(
    backbone=dict(
        arch='small',
        init_cfg=dict(checkpoint='checkpoints/stvit-r-swin-s_in1k.pth'),
    ),
)
