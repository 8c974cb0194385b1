# The baseline with the stem of the semantic configs, to tell the stem's share of their gain.
_base_ = './swin-mini_1xb64-20e_flowers17-96x96.py'

model = dict(backbone=dict(conv_stem=True))
