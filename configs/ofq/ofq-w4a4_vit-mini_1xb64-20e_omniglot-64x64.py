# Starts from configs/reid/vit-mini_1xb64-40e_omniglot-64x64.py; 20 epochs in low bits.
_base_ = '../reid/vit-mini_1xb64-40e_omniglot-64x64.py'

model = dict(backbone=dict(quant_cfg=dict(type='OFQ', w_bits=4, a_bits=4)))

optim_wrapper = dict(optimizer=dict(lr=5e-4), paramwise_cfg=dict(flat_decay_mult=0.0))
param_scheduler = dict(warmup_epochs=1)
train_cfg = dict(max_epochs=20)
custom_hooks = [dict(type='QuantCalibrationHook'), dict(type='OscillationHook')]

load_from = 'work_dirs/vit-mini_1xb64-40e_omniglot-64x64/epoch_40.pth'
