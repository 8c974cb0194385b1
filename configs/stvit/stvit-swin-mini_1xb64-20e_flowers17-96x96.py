# The third stage's last four layers on 3x3 semantic tokens of its 6x6.
_base_ = './swin-mini_1xb64-20e_flowers17-96x96.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='vitdown.STViTSwin',
        recover=False,
        arch=_base_.model.backbone.arch,
        img_size=96,
        window_size=6,
        key_windows=(12,),
        layer_scale_init_value=0.1,
        drop_path_rate=0.0,
    ),
)
