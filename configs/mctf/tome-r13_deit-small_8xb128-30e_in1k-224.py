# ToMe in every block. With MCTF's fine-tuning: the schedule of its own paper is DeiT's 300 epochs.
_base_ = './mctf-r16_deit-small_8xb128-30e_in1k-224.py'

model = dict(backbone=dict(token_fusion=dict(_delete_=True, type='ToMe', r=13)))
