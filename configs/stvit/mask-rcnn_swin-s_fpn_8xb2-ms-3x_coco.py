_base_ = [
    '../_base_/models/mask-rcnn_swin.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/adamw_det_3x.py',
    '../_base_/det_runtime.py',
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
