# Reconstructed: the layout was found by matching the paper's multiply-adds.
_base_ = [
    '../_base_/models/stvit_cls.py',
    '../_base_/datasets/imagenet_224_swin.py',
    '../_base_/schedules/stvit_adamw_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4, recover=False, num_semantic=4),
    head=dict(in_channels=1024),
)
