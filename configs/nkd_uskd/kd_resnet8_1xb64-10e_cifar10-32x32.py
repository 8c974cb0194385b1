_base_ = [
    './resnet8_1xb64-10e_cifar10-32x32.py',
    '../_base_/models/cifar_resnet20_teacher.py',
]

custom_hooks = [
    dict(
        type='KDHook',
        teacher={{_base_.teacher}},
        teacher_checkpoint={{_base_.teacher_checkpoint}},
        teacher_source='cifar_resnet',
        temperature=3.0,
        alpha=0.5,
    )
]
