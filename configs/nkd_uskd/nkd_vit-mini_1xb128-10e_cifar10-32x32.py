# A ViT learns from a CNN; without teacher it is configs/smmix/vit-mini_1xb128-10e_cifar10-32x32.py.
_base_ = [
    '../smmix/vit-mini_1xb128-10e_cifar10-32x32.py',
    '../_base_/models/cifar_resnet56_teacher.py',
]

custom_hooks = [
    dict(
        type='NKDHook',
        teacher={{_base_.teacher}},
        teacher_checkpoint={{_base_.teacher_checkpoint}},
        teacher_source='cifar_resnet',
        temperature=1.0,
        gamma=1.0,
    )
]
