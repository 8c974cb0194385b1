# A UPerNet that trains on a CPU in minutes: Swin of 32 channels, heads to match. MMDetection's Swin
# starts as its authors' does without a checkpoint.
_base_ = './upernet_swin.py'

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(192, 256)),
    backbone=dict(
        _delete_=True,
        type='mmdet.SwinTransformer',
        embed_dims=32,
        depths=[1, 1, 6, 1],
        num_heads=[1, 2, 4, 8],
        drop_path_rate=0.0,
    ),
    decode_head=dict(
        in_channels=[32, 64, 128, 256], channels=64, num_classes=11, norm_cfg=norm_cfg
    ),
    auxiliary_head=dict(in_channels=128, channels=32, num_classes=11, norm_cfg=norm_cfg),
)
