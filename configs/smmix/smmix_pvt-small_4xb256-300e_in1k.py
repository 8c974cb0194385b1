_base_ = '../_base_/smmix_imagenet_300e.py'

model = dict(
    backbone=dict(type='vitdown.PyramidVisionTransformer', arch='small', drop_path_rate=0.1),
    head=dict(type='LinearClsHead', in_channels=512),
)
