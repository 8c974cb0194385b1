_base_ = './vit-mini_1xb128-10e_cifar10-32x32.py'

custom_hooks = [dict(type='SMMixHook')]
