# Reconstructed: the layout was found by matching the paper's multiply-adds.
_base_ = [
    '../_base_/models/stvit_cls.py',
    '../_base_/datasets/imagenet_224_swin.py',
    '../_base_/schedules/stvit_adamw_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(_delete_=True, type='vitdown.STViTDeiT', arch='deit-small', drop_path_rate=0.1),
    neck=None,
    head=dict(in_channels=384),
)
