# ResNet-18 for images of 32 pixels. The model sees pixels in 0..1.
model = dict(
    type='mmpretrain.ImageClassifier',
    data_preprocessor=dict(
        type='mmpretrain.ClsDataPreprocessor',
        mean=[0.0] * 3,
        std=[255.0] * 3,
        to_rgb=True,
        num_classes=10,
    ),
    backbone=dict(type='mmpretrain.ResNet_CIFAR', depth=18, zero_init_residual=False),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=10,
        in_channels=512,
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
    ),
)
