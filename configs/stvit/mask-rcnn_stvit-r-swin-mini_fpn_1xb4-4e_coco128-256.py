_base_ = [
    '../_base_/models/mask-rcnn_stvit-r-swin-mini.py',
    '../_base_/datasets/coco128_instance_256.py',
    '../_base_/schedules/adamw_dense_4e.py',
    '../_base_/det_runtime.py',
]
