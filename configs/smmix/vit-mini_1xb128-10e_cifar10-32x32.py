# Without mixing, on 4,000 of the pack's images so that a run takes about a minute.
_base_ = [
    '../_base_/models/vit_mini_cifar10.py',
    '../_base_/datasets/cifar10_32x32.py',
    '../_base_/schedules/adamw_cosine_40e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=128, num_workers=1, dataset=dict(indices=4000))
param_scheduler = dict(warmup_epochs=1)
train_cfg = dict(max_epochs=10, val_interval=10)
auto_scale_lr = dict(base_batch_size=128)
