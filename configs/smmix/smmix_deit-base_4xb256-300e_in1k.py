_base_ = '../_base_/smmix_imagenet_300e.py'

model = dict(
    backbone=dict(type='vitdown.VisionTransformer', arch='deit-base', drop_path_rate=0.1),
    head=dict(type='VisionTransformerClsHead', in_channels=768),
)
