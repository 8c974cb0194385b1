_base_ = 'mmpretrain::deit/deit-tiny_4xb256_in1k.py'

custom_hooks = [
    dict(
        type='vitdown.NKDHook',
        teacher=dict(
            type='ImageClassifier',
            data_preprocessor={{_base_.data_preprocessor}},
            backbone=dict(type='vitdown.DeiT3', arch='small'),
            head=dict(type='VisionTransformerClsHead', num_classes=1000, in_channels=384),
        ),
        teacher_checkpoint='https://download.openmmlab.com/mmclassification/v0/deit3/deit3-small-p16_in21k-pre_3rdparty_in1k_20221009-dcd90827.pth',
        temperature=1.0,
        gamma=1.0,
    ),
]
