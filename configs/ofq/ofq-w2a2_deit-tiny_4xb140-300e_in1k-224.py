_base_ = [
    '../_base_/models/ofq_deit-distilled.py',
    '../_base_/datasets/imagenet_224_mctf.py',
    '../_base_/schedules/ofq_adamw_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='deit-tiny', quant_cfg=dict(w_bits=2, a_bits=2)),
    head=dict(in_channels=192),
)

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
train_dataloader = dict(
    batch_size=140, sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True)
)
default_hooks = dict(checkpoint=dict(save_best='auto'))
