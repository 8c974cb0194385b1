# Three blocks fuse 35 % of the tokens each, the teacher up to 14 %.
_base_ = './mctf-r16_deit-tiny_8xb128-30e_in1k-224.py'

model = dict(backbone=dict(token_fusion=dict(r=0.35, layers=[3, 6, 9])))
custom_hooks = [
    dict(
        type='TokenConsistencyHook',
        r_max=0.15,
        loss_weight=3.0,
        teacher_loss_weight=1.0,
        conf_thr=0.4,
    )
]
