# Prunes a trained re-ID model to half of its latency; its own weights before pruning teach it.
# Needs deit-small_market1501.pth and a latency table; see README.md.
_base_ = '../reid/deit-small_1xb64-120e_market1501-256x128.py'

custom_hooks = [
    dict(
        type='KDHook',
        teacher='{{ fileDirname }}/../reid/deit-small_1xb64-120e_market1501-256x128.py',
        teacher_checkpoint='deit-small_market1501.pth',
    ),
    dict(
        type='PruningHook',
        cost='latency',
        latency_table='work_dirs/latency_deit-small_256x128.json',
        targets=[0.7, 0.5],
        recipe='{{ fileDirname }}/../reid/deit-small_1xb64-120e_market1501-256x128.py',
    ),
]
load_from = 'deit-small_market1501.pth'

optim_wrapper = dict(optimizer=dict(lr=8e-4))
param_scheduler = None
