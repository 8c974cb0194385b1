_base_ = [
    '../_base_/models/mask-rcnn_stvit-r-swin.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/adamw_det_3x.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(
        arch='small',
        init_cfg=dict(checkpoint='checkpoints/stvit-r-swin-s_in1k.pth'),
    ),
)
