_base_ = '../_base_/models/mobilenet_v1.py'

optim_wrapper = dict(clip_grad=dict(max_norm=5.0))

custom_hooks = [
    dict(
        type='vitdown.NKDHook',
        teacher='mmpretrain::resnet/resnet50_8xb32_in1k.py',
        teacher_checkpoint='https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth',
        temperature=1.0,
        gamma=1.5,
    ),
]
