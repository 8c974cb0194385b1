# Starts from a trained full-precision model: configs/reid's config of the same name.
_base_ = '../reid/deit-small_1xb64-120e_market1501-256x128.py'

model = dict(backbone=dict(drop_path_rate=0.0, quant_cfg=dict(type='OFQ', w_bits=4, a_bits=4)))

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
custom_hooks = [dict(type='QuantCalibrationHook'), dict(type='OscillationHook')]

load_from = 'work_dirs/deit-small_1xb64-120e_market1501-256x128/epoch_120.pth'
