_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'

custom_hooks = [
    dict(type='vitdown.USKDHook', in_channels=320, taps=dict(student_mid='backbone.layer7'))
]
