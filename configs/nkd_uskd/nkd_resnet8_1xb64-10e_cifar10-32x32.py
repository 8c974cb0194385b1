_base_ = [
    './resnet8_1xb64-10e_cifar10-32x32.py',
    '../_base_/models/cifar_resnet20_teacher.py',
]

custom_hooks = [
    dict(
        type='NKDHook',
        teacher={{_base_.teacher}},
        teacher_checkpoint={{_base_.teacher_checkpoint}},
        teacher_source='cifar_resnet',
        temperature=1.0,
        gamma=1.5,
    )
]
