# A ResNet of three stages and 16 to 64 channels, for a CPU; clean images.
_base_ = [
    '../_base_/models/resnet_cifar.py',
    '../_base_/datasets/cifar10_32x32.py',
    '../_base_/schedules/sgd_onecycle_6e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        stem_channels=16,
        base_channels=16,
        num_stages=3,
        strides=(2, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
    ),
    head=dict(in_channels=64),
)
