_base_ = [
    '../_base_/models/mask-rcnn_swin-mini.py',
    '../_base_/datasets/nuclei_instance_256.py',
    '../_base_/schedules/adamw_dense_4e.py',
    '../_base_/det_runtime.py',
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)))
