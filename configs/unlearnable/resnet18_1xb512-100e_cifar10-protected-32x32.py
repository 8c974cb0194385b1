# Protected training images, clean test images.
_base_ = './resnet18_1xb512-100e_cifar10-32x32.py'

train_pipeline = [
    dict(type='ConvUnlearnable', num_classes=10, kernel_size=3, blur_parameter=0.3),
    dict(type='mmpretrain.RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmpretrain.PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
