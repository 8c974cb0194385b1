# Four fifths of the training images protected.
_base_ = './resnet-mini_1xb128-6e_cifar10-protected-32x32.py'

train_pipeline = [
    dict(
        type='ConvUnlearnable',
        num_classes=10,
        kernel_size=3,
        blur_parameter=0.3,
        poison_fraction=0.8,
    ),
    dict(type='mmpretrain.RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmpretrain.PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
