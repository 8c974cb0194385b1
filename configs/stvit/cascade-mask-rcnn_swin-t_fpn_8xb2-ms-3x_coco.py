_base_ = [
    '../_base_/models/cascade-mask-rcnn_swin.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/adamw_det_3x.py',
    '../_base_/det_runtime.py',
]
