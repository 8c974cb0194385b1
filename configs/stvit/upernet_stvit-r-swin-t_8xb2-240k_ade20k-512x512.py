_base_ = [
    '../_base_/models/upernet_stvit-r-swin.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/adamw_seg_240k.py',
    '../_base_/seg_runtime.py',
]
