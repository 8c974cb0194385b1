# Adversarial training in the L2 ball; clean images.
_base_ = './resnet-mini_1xb128-6e_cifar10-32x32.py'

custom_hooks = [dict(type='PGDTrainingHook', norm='l2', eps=0.5, steps=10)]
