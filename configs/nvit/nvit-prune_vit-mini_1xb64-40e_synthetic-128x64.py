# Pruning small enough for a CPU: the demo's model to half of its multiply-adds.
# Needs work_dirs/vit-mini.pth, a checkpoint of the base config; see README.md.
_base_ = '../reid/vit-mini_1xb64-40e_synthetic-128x64.py'

custom_hooks = [
    dict(
        type='PruningHook',
        cost='macs',
        targets=[0.7, 0.5],
        interval=5,
        prune_per_event=64,
        momentum=0.5,
        recipe='{{ fileDirname }}/../reid/vit-mini_1xb64-40e_synthetic-128x64.py',
    ),
]
load_from = 'work_dirs/vit-mini.pth'

optim_wrapper = dict(optimizer=dict(lr=3e-4))
param_scheduler = None
