_base_ = [
    '../_base_/models/ofq_deit-distilled.py',
    '../_base_/datasets/imagenet_224_mctf.py',
    '../_base_/schedules/ofq_adamw_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='deit-small', quant_cfg=dict(w_bits=3, a_bits=3)),
    head=dict(
        in_channels=384,
        loss=dict(type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    train_cfg=dict(
        augments=[
            dict(type='mmpretrain.Mixup', alpha=0.8),
            dict(type='mmpretrain.CutMix', alpha=1.0),
        ],
    ),
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
                arch='deit-small',
                img_size=224,
                patch_size=16,
            ),
            head=dict(type='vitdown.DistilledClsHead', num_classes=1000, in_channels=384),
        ),
        teacher_checkpoint='deit-small-distilled.pth',
        taps=dict(student_logits='head.layers.head_dist', teacher_logits='head.layers.head'),
    ),
    dict(type='OscillationHook'),
]

load_from = 'deit-small-distilled.pth'
train_dataloader = dict(batch_size=100)
optim_wrapper = dict(optimizer=dict(lr=0.00032, weight_decay=0.0))
param_scheduler = dict(
    _delete_=True, type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, end=300
)
auto_scale_lr = dict(base_batch_size=800)
default_hooks = dict(checkpoint=dict(save_best='auto'))
