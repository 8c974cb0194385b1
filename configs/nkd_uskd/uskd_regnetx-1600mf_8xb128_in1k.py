_base_ = 'mmpretrain::regnet/regnetx-1.6gf_8xb128_in1k.py'

custom_hooks = [
    dict(type='PreciseBNHook', num_samples=8192, interval=1, priority='ABOVE_NORMAL'),
    dict(type='vitdown.USKDHook', in_channels=408),
]
