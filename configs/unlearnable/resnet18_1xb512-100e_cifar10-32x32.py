# The paper's ResNet-18 and recipe, clean images.
_base_ = [
    '../_base_/models/resnet_cifar.py',
    '../_base_/datasets/cifar10_32x32.py',
    '../_base_/schedules/sgd_step_100e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=512)
