# ResNet-20 trained on CIFAR-10 (91.3 % of the pack's test images), to learn from.
teacher = dict(
    type='mmpretrain.ImageClassifier',
    data_preprocessor=dict(
        type='mmpretrain.ClsDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(type='vitdown.CIFARResNet', depth=20),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
    ),
)
teacher_checkpoint = '{{$VITDOWN_DATA:data}}/weights/cifar10_resnet20_fp16.pth'
