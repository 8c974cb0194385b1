# Fine-tuning with MCTF: AdamW, no warm-up, cosine by epoch from 1.5e-5 * batch / 512 to 1e-6, and
# the consistency between passes with many and with few tokens fused.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=3e-5, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(cls_token=dict(decay_mult=0.0), pos_embed=dict(decay_mult=0.0)),
    ),
)
param_scheduler = dict(type='CosineAnnealingLR', T_max=30, end=30, eta_min=1e-6, by_epoch=True)
custom_hooks = [
    dict(
        type='TokenConsistencyHook',
        r_max=8,
        loss_weight=3.0,
        teacher_loss_weight=1.0,
        conf_thr=0.4,
    )
]
train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=1024, enable=False)
