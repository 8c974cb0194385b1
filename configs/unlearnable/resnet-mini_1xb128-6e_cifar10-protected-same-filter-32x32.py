# A control: one filter for all classes, which tells no class apart.
_base_ = './resnet-mini_1xb128-6e_cifar10-protected-32x32.py'

train_pipeline = [
    dict(
        type='ConvUnlearnable', num_classes=10, kernel_size=3, blur_parameter=0.3, same_filter=True
    ),
    dict(type='mmpretrain.RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmpretrain.PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
