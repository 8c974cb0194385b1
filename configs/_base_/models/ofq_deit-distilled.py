# Distilled DeiT in low bits; configs set arch, in_channels and the bits of quant_cfg.
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
        type='vitdown.DistilledVisionTransformer',
        img_size=224,
        patch_size=16,
        quant_cfg=dict(type='OFQ'),
    ),
    head=dict(
        type='vitdown.DistilledClsHead',
        num_classes=1000,
        loss_on='cls',
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
        quant_cfg=dict(type='OFQ'),
    ),
)
