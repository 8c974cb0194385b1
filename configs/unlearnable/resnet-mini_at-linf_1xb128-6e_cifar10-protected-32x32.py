# Adversarial training in the L-infinity ball.
_base_ = './resnet-mini_1xb128-6e_cifar10-protected-32x32.py'

custom_hooks = [dict(type='PGDTrainingHook', norm='linf', eps=4 / 255, steps=10)]
