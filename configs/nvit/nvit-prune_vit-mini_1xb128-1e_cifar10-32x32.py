# Pruning in one epoch of 10,000 images of CIFAR-10, for a CPU: the setting of benchmarks/nvit.py.
# Needs work_dirs/vit-mini_cifar10.pth, a checkpoint of the base config; see README.md.
_base_ = '../smmix/vit-mini_1xb128-10e_cifar10-32x32.py'

train_dataloader = dict(dataset=dict(indices=10000))
custom_hooks = [
    dict(
        type='PruningHook',
        cost='macs',
        targets=0.5,
        interval=4,
        prune_per_event=6,
        rank_unit=1,
        momentum=0.5,
        recipe='{{ fileDirname }}/../smmix/vit-mini_1xb128-10e_cifar10-32x32.py',
        group_sizes=dict(emb=8, head=1, qk=4, v=4, mlp=8),
    ),
]
load_from = 'work_dirs/vit-mini_cifar10.pth'

optim_wrapper = dict(optimizer=dict(lr=3e-4))
param_scheduler = None
