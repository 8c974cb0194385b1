_base_ = '../_base_/ofq_deit-small.py'

model = dict(backbone=dict(quant_cfg=dict(w_bits=2, a_bits=2)))

train_dataloader = dict(
    batch_size=140, sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True)
)
