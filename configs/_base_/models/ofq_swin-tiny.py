# Swin-T in low bits; configs set the bits of quant_cfg.
model = dict(
    type='mmpretrain.ImageClassifier',
    data_preprocessor=dict(
        type='mmpretrain.ClsDataPreprocessor',
        num_classes=1000,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='vitdown.SwinTransformer',
        arch='tiny',
        img_size=224,
        drop_path_rate=0.0,
        quant_cfg=dict(type='OFQ'),
    ),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(
        type='vitdown.LinearClsHead',
        num_classes=1000,
        in_channels=768,
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
        quant_cfg=dict(type='OFQ'),
    ),
)
