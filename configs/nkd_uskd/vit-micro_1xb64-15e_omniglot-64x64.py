# A student of three layers and width 64, an eighth of the baseline's multiply-adds.
_base_ = '../reid/vit-mini_1xb64-40e_omniglot-64x64.py'

model = dict(
    backbone=dict(
        arch=dict(embed_dims=64, num_layers=3, num_heads=4, feedforward_channels=256),
    ),
    head=dict(in_channels=64),
)
train_cfg = dict(max_epochs=15, val_interval=15)
param_scheduler = dict(warmup_epochs=3)
