_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

custom_hooks = [dict(type='vitdown.USKDHook', in_channels=1024)]
