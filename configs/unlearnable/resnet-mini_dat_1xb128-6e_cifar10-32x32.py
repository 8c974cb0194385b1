# The adaptive defence, training on adversarially deconvolved images; clean images.
_base_ = './resnet-mini_1xb128-6e_cifar10-32x32.py'

custom_hooks = [dict(type='DeconvolutionTrainingHook', kernel_size=7, steps=10, eta=0.1)]
