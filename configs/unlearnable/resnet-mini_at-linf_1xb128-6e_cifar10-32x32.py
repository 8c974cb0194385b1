# Adversarial training in the L-infinity ball; clean images.
_base_ = './resnet-mini_1xb128-6e_cifar10-32x32.py'

custom_hooks = [dict(type='PGDTrainingHook', norm='linf', eps=4 / 255, steps=10)]
