# Swin of 32 channels with windows of 6: the baseline of the two semantic configs beside it.
_base_ = './vit-mini_1xb64-20e_flowers17-96x96.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='vitdown.SwinTransformer',
        arch=dict(embed_dims=32, depths=(1, 1, 6, 1), num_heads=(1, 2, 4, 8)),
        img_size=96,
        window_size=6,
        pad_small_map=True,
        drop_path_rate=0.0,
    ),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(in_channels=256),
)
