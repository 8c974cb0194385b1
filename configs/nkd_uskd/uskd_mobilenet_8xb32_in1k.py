_base_ = '../_base_/models/mobilenet_v1.py'

custom_hooks = [
    dict(type='vitdown.USKDHook', in_channels=512, taps=dict(student_mid='backbone.model'))
]
