_base_ = './vit-mini_1xb128-10e_cifar10-32x32.py'

model = dict(
    data_preprocessor=dict(
        batch_augments=dict(augments=[dict(type='mmpretrain.Mixup', alpha=0.8)]),
    )
)
