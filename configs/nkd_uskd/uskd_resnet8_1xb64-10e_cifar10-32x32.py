_base_ = './resnet8_1xb64-10e_cifar10-32x32.py'

custom_hooks = [
    dict(
        type='USKDHook',
        in_channels=16,
        alpha=0.1,
        beta=0.1,
        mu=0.1,
        taps=dict(student_mid='backbone.layer2'),
    )
]
