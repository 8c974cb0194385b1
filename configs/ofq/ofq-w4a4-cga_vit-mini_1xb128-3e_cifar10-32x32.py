# Second stage: three epochs more at the lowest rate, of weights near a threshold alone.
_base_ = './ofq-w4a4_vit-mini_1xb128-10e_cifar10-32x32.py'

default_hooks = dict(annealing=dict(type='CGAHook', boundary_range=0.005))

optim_wrapper = dict(optimizer=dict(lr=1e-5))
param_scheduler = dict(_delete_=True, type='ConstantLR', factor=1.0, by_epoch=True, end=3)
train_cfg = dict(max_epochs=3, val_interval=3)
load_from = 'work_dirs/ofq-w4a4_vit-mini_1xb128-10e_cifar10-32x32/epoch_10.pth'
