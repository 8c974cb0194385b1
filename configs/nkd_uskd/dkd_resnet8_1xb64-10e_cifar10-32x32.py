# Temperature and weights of the official ImageNet config. Those for CIFAR-100 (4, 1 and 8) multiply
# the gradients by more than ten, which ten epochs without warm-up do not survive.
_base_ = [
    './resnet8_1xb64-10e_cifar10-32x32.py',
    '../_base_/models/cifar_resnet20_teacher.py',
]

custom_hooks = [
    dict(
        type='DKDHook',
        teacher={{_base_.teacher}},
        teacher_checkpoint={{_base_.teacher_checkpoint}},
        teacher_source='cifar_resnet',
        temperature=1.0,
        alpha=1.0,
        beta=0.5,
    )
]
