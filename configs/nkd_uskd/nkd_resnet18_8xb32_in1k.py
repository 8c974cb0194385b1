_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'

custom_hooks = [
    dict(
        type='vitdown.NKDHook',
        teacher='mmpretrain::resnet/resnet34_8xb32_in1k.py',
        teacher_checkpoint='https://download.openmmlab.com/mmclassification/v0/resnet/resnet34_8xb32_in1k_20210831-f257d4e6.pth',
        temperature=1.0,
        gamma=1.5,
    ),
]
