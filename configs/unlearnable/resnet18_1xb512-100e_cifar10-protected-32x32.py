# The paper's ResNet-18 and recipe, protected training images, clean test images.
_base_ = [
    '../_base_/models/resnet_cifar.py',
    '../_base_/datasets/cifar10_32x32.py',
    '../_base_/schedules/sgd_step_100e.py',
    '../_base_/default_runtime.py',
]

train_pipeline = [
    dict(type='ConvUnlearnable', num_classes=10, kernel_size=3, blur_parameter=0.3),
    dict(type='mmpretrain.RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmpretrain.PackInputs'),
]
train_dataloader = dict(batch_size=512, dataset=dict(pipeline=train_pipeline))
