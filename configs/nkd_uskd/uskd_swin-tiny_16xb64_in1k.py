_base_ = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'

# The norm of the third stage exists with its output only; nothing but USKD looks at it.
model = dict(backbone=dict(out_indices=(2, 3)))

custom_hooks = [
    dict(
        type='vitdown.USKDHook',
        in_channels=384,
        taps=dict(student_mid=dict(module='backbone.norm2', pool='mean')),
    )
]
