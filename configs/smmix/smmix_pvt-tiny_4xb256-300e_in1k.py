_base_ = '../_base_/smmix_imagenet_300e.py'

model = dict(
    backbone=dict(type='vitdown.PyramidVisionTransformer', arch='tiny', drop_path_rate=0.1),
    head=dict(type='LinearClsHead', in_channels=512),
)

# PVT's position embeddings decay, as in its own training.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'.pos_embed': dict(decay_mult=1.0)}))
