_base_ = 'mmpretrain::shufflenet_v2/shufflenet-v2-1x_16xb64_in1k.py'

custom_hooks = [
    dict(type='vitdown.USKDHook', in_channels=464, taps=dict(student_mid='backbone.layers.2'))
]
