# DeiT-S on 16x8 patches, pooled to 8x4 semantic tokens
_base_ = '../reid/deit-small_1xb64-120e_market1501-256x128.py'

model = dict(
    backbone=dict(type='STViTDeiT', semantic_grid=(8, 4), out_type='avg_featmap'),
)
