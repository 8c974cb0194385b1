# Two layers on 12x12 patches, two that generate 4x4 semantic tokens, two on those alone.
_base_ = './vit-mini_1xb64-20e_flowers17-96x96.py'

model = dict(
    backbone=dict(
        type='vitdown.STViTDeiT', num_base=2, semantic_grid=(4, 4), out_type='avg_featmap'
    ),
)
