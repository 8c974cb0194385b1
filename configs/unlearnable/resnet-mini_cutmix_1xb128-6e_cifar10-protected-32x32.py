_base_ = './resnet-mini_1xb128-6e_cifar10-protected-32x32.py'

model = dict(train_cfg=dict(augments=[dict(type='mmpretrain.CutMix', alpha=1.0)]))
