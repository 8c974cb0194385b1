# OFQ's first stage: 300 epochs and 10 more at the lowest rate. The cosine starts after the warm-up
# here; the official one runs beside it, so that the rates differ by up to 1.4 % of the highest one.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5.47e-4, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    # Steps, shifts, norms and biases: whatever has one dimension
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys=dict(
            cls_token=dict(decay_mult=0.0),
            dist_token=dict(decay_mult=0.0),
            pos_embed=dict(decay_mult=0.0),
        ),
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6 / 5.47e-4, by_epoch=True, end=5),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300),
]
train_cfg = dict(by_epoch=True, max_epochs=310, val_interval=1)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=560, enable=False)
