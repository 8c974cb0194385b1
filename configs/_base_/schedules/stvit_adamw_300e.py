# Swin's recipe from scratch, 1,024 images a step: 20 epochs of warm-up, cosine. No decay of biases,
# norms, layer scales and relative position biases.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.0)),
    ),
    clip_grad=dict(max_norm=5.0),
)
# The cosine counts from the first iteration, as timm's does, and takes over after the warm-up.
param_scheduler = dict(
    type='WarmupCosineLR',
    warmup_epochs=20,
    warmup_start_ratio=1e-3,
    min_lr_ratio=1e-2,
    convert_to_iter_based=True,
)
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=1024, enable=False)
