# CutMix and Mixup in turns, as SMMix has regions and Mixup in turns.
_base_ = './vit-mini_1xb128-10e_cifar10-32x32.py'

model = dict(
    data_preprocessor=dict(
        batch_augments=dict(
            augments=[
                dict(type='mmpretrain.CutMix', alpha=1.0),
                dict(type='mmpretrain.Mixup', alpha=0.8),
            ],
            probs=[0.5, 0.5],
        )
    )
)
