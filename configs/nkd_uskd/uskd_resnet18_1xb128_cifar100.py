_base_ = './resnet18_1xb128_cifar100.py'

custom_hooks = [dict(type='vitdown.USKDHook', in_channels=256, alpha=0.1, beta=0.1, mu=0.1)]
