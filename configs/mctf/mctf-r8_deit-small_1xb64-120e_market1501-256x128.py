# Re-ID with the recipe of the baseline: 129 tokens, 41 after the last block.
_base_ = '../reid/deit-small_1xb64-120e_market1501-256x128.py'

model = dict(backbone=dict(token_fusion=dict(type='MCTF', r=8)))
custom_hooks = [dict(type='TokenConsistencyHook', r_max=4, conf_thr=0.4)]
