_base_ = [
    '../_base_/models/mask-rcnn_swin.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_det_1x.py',
    '../_base_/det_runtime.py',
]
