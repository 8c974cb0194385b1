# TransReID's optimisation: SGD, biases at twice the learning rate, 5 epochs of warm-up, cosine.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.008, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(bias=dict(lr_mult=2.0))),
)
param_scheduler = dict(
    type='WarmupCosineLR',
    warmup_epochs=5,
    warmup_start_ratio=0.01,
    min_lr_ratio=0.002,
)
train_cfg = dict(by_epoch=True, max_epochs=120, val_interval=20)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=64, enable=False)
