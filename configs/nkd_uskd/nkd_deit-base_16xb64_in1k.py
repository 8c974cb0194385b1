_base_ = 'mmpretrain::deit/deit-base_16xb64_in1k.py'

custom_hooks = [
    dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL'),
    dict(
        type='vitdown.NKDHook',
        teacher=dict(
            type='ImageClassifier',
            data_preprocessor={{_base_.data_preprocessor}},
            backbone=dict(type='vitdown.DeiT3', arch='large'),
            head=dict(type='VisionTransformerClsHead', num_classes=1000, in_channels=1024),
        ),
        teacher_checkpoint='https://download.openmmlab.com/mmclassification/v0/deit3/deit3-large-p16_in21k-pre_3rdparty_in1k_20221009-d8d27084.pth',
        temperature=1.0,
        gamma=1.0,
    ),
]
