# Starts from configs/smmix/vit-mini_1xb128-10e_cifar10-32x32.py, which teaches, too.
_base_ = '../smmix/vit-mini_1xb128-10e_cifar10-32x32.py'

checkpoint = 'work_dirs/vit-mini_1xb128-10e_cifar10-32x32/epoch_10.pth'
quant_cfg = dict(type='OFQ', w_bits=4, a_bits=4)

model = dict(
    backbone=dict(quant_cfg=quant_cfg),
    head=dict(type='vitdown.VisionTransformerClsHead', quant_cfg=quant_cfg),
)

optim_wrapper = dict(paramwise_cfg=dict(flat_decay_mult=0.0))
custom_hooks = [
    dict(type='QuantCalibrationHook'),
    dict(
        type='DistillationHook',
        losses=dict(loss_soft=dict(type='SoftTargetLoss')),
        teacher={{_base_.model}},
        teacher_checkpoint=checkpoint,
    ),
    dict(type='OscillationHook'),
]

load_from = checkpoint
