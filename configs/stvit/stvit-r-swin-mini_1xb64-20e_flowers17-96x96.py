# With recovery of the third stage's 6x6 tokens.
_base_ = './stvit-swin-mini_1xb64-20e_flowers17-96x96.py'

model = dict(backbone=dict(recover=True, key_windows=(12, 18)))
