# The baseline of dcal_vit-mini_1xb64-40e_flowers17-96x96.py: self-attention alone.
_base_ = './dcal_vit-mini_1xb64-40e_flowers17-96x96.py'

model = dict(
    _delete_=True,
    type='mmpretrain.ImageClassifier',
    data_preprocessor=dict(
        type='mmpretrain.ClsDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='vitdown.VisionTransformer',
        arch=dict(embed_dims=128, num_layers=6, num_heads=4, feedforward_channels=512),
        img_size=(96, 96),
        patch_size=8,
        out_type='cls_token',
    ),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=17,
        in_channels=128,
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    ),
)
