_base_ = [
    '../_base_/models/stvit_cls.py',
    '../_base_/datasets/imagenet_224_swin.py',
    '../_base_/schedules/stvit_adamw_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(arch='base', drop_path_rate=0.4), head=dict(in_channels=1024))
