_base_ = './resnet18_1xb128_cifar100.py'

custom_hooks = [
    dict(
        type='vitdown.NKDHook',
        teacher='{{ fileDirname }}/resnet34_1xb128_cifar100.py',
        teacher_checkpoint='work_dirs/resnet34_1xb128_cifar100/epoch_200.pth',
        temperature=3.0,
        gamma=3.5,
    ),
]
