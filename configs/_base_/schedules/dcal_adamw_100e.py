# Fine-grained classification with DCAL: AdamW, cosine, 5e-4 / 512 times the batch as in DeiT;
# warm-up from 1e-6 and down to it again. Weights of the losses do not decay.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4 / 512 * 16, weight_decay=0.05, betas=(0.9, 0.999)),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(
            cls_token=dict(decay_mult=0.0),
            pos_embed=dict(decay_mult=0.0),
            log_vars=dict(decay_mult=0.0),
        ),
    ),
)
param_scheduler = dict(
    type='WarmupCosineLR',
    warmup_epochs=5,
    warmup_start_ratio=0.064,
    min_lr_ratio=0.064,
)
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=5)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=16, enable=False)
