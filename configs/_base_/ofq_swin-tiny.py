# Swin-T in low bits and what teaches it; configs set the bits of quant_cfg and rates.
_base_ = [
    './models/ofq_swin-tiny.py',
    './datasets/imagenet_224_ofq.py',
    './schedules/ofq_adamw_300e.py',
    './default_runtime.py',
]

# The same network in full precision teaches.
custom_hooks = [
    dict(type='QuantCalibrationHook'),
    dict(
        type='DistillationHook',
        losses=dict(loss_soft=dict(type='SoftTargetLoss')),
        teacher=dict(
            type='mmpretrain.ImageClassifier',
            data_preprocessor={{_base_.model.data_preprocessor}},
            backbone=dict(type='vitdown.SwinTransformer', arch='tiny', img_size=224),
            neck=dict(type='mmpretrain.GlobalAveragePooling'),
            head=dict(type='vitdown.LinearClsHead', num_classes=1000, in_channels=768),
        ),
        teacher_checkpoint='swin-tiny.pth',
        taps=dict(student_logits='head.fc', teacher_logits='head.fc'),
    ),
    dict(type='OscillationHook'),
]

load_from = 'swin-tiny.pth'
train_dataloader = dict(
    batch_size=64, sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True)
)
auto_scale_lr = dict(base_batch_size=512)
default_hooks = dict(checkpoint=dict(save_best='auto'))
