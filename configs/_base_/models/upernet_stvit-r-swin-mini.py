# The same with STViT-R-Swin
_base_ = './upernet_swin-mini.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='vitdown.STViTSwin',
        arch=dict(embed_dims=32, depths=(1, 1, 6, 1), num_heads=(1, 2, 4, 8)),
        img_size=(180, 240),
        drop_path_rate=0.0,
        layer_scale_init_value=0.1,
        out_indices=(0, 1, 2, 3),
    )
)
