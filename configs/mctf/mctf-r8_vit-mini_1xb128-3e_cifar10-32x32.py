# MCTF fine-tuned on a CPU, from a run of the config below: 65 tokens, 25 after the last block.
_base_ = './vit-mini_1xb128-10e_cifar10-32x32.py'

model = dict(backbone=dict(token_fusion=dict(type='MCTF', r=8)))
custom_hooks = [dict(type='TokenConsistencyHook', r_max=4)]
optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = dict(warmup_epochs=0, min_lr_ratio=0.1)
train_cfg = dict(max_epochs=3, val_interval=1)
