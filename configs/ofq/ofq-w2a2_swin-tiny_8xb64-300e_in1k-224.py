_base_ = [
    '../_base_/models/ofq_swin-tiny.py',
    '../_base_/datasets/imagenet_224_mctf.py',
    '../_base_/schedules/ofq_adamw_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(quant_cfg=dict(w_bits=2, a_bits=2)),
)

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
optim_wrapper = dict(optimizer=dict(lr=0.0005))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6 / 0.0005, by_epoch=True, end=5),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300),
]
auto_scale_lr = dict(base_batch_size=512)
default_hooks = dict(checkpoint=dict(save_best='auto'))
