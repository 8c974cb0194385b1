# The paper's adversarial training in the L-infinity ball of 4/255.
_base_ = './resnet18_1xb512-100e_cifar10-protected-32x32.py'

custom_hooks = [dict(type='PGDTrainingHook', norm='linf', eps=4 / 255, steps=10)]
