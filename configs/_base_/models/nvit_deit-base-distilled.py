# Distilled DeiT-Base with both classifiers: where NViT starts from, and its teacher.
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
        type='vitdown.NViT',
        arch='deit-base',
        img_size=224,
        patch_size=16,
        with_dist_token=True,
        drop_path_rate=0.1,
    ),
    head=dict(
        type='vitdown.DistilledClsHead',
        num_classes=1000,
        in_channels=768,
        loss=dict(type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    train_cfg=dict(
        augments=[
            dict(type='mmpretrain.Mixup', alpha=0.8),
            dict(type='mmpretrain.CutMix', alpha=1.0),
        ],
    ),
)
