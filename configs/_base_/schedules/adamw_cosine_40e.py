# Training small ViTs from scratch: AdamW as in DeiT, linear warm-up and cosine by epoch.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-3, weight_decay=0.05, betas=(0.9, 0.999)),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(cls_token=dict(decay_mult=0.0), pos_embed=dict(decay_mult=0.0)),
    ),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = dict(type='WarmupCosineLR', warmup_epochs=5, min_lr_ratio=0.01)
train_cfg = dict(by_epoch=True, max_epochs=40, val_interval=20)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=64, enable=False)
