# DeiT-T in low bits and what teaches it; configs set the bits of quant_cfg, batch and rates.
_base_ = [
    './models/ofq_deit-distilled.py',
    './datasets/imagenet_224_ofq.py',
    './schedules/ofq_adamw_300e.py',
    './default_runtime.py',
]

model = dict(backbone=dict(arch='deit-tiny'), head=dict(in_channels=192))

# The class token's head of the same network in full precision teaches the distillation token's.
custom_hooks = [
    dict(type='QuantCalibrationHook'),
    dict(
        type='DistillationHook',
        losses=dict(loss_soft=dict(type='SoftTargetLoss')),
        teacher=dict(
            type='mmpretrain.ImageClassifier',
            data_preprocessor={{_base_.model.data_preprocessor}},
            backbone=dict(
                type='vitdown.DistilledVisionTransformer',
                arch='deit-tiny',
                img_size=224,
                patch_size=16,
            ),
            head=dict(type='vitdown.DistilledClsHead', num_classes=1000, in_channels=192),
        ),
        teacher_checkpoint='deit-tiny-distilled.pth',
        taps=dict(student_logits='head.layers.head_dist', teacher_logits='head.layers.head'),
    ),
    dict(type='OscillationHook'),
]

load_from = 'deit-tiny-distilled.pth'
default_hooks = dict(checkpoint=dict(save_best='auto'))
