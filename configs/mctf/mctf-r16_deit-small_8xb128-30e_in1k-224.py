_base_ = [
    '../_base_/models/mctf_deit.py',
    '../_base_/datasets/imagenet_224_mctf.py',
    '../_base_/schedules/mctf_adamw_30e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='deit-small', token_fusion=dict(r=16, layers=range(1, 12))),
    head=dict(in_channels=384),
)
