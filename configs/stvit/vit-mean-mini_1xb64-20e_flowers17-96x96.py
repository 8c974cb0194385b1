# The baseline that averages its patches as the semantic config averages its tokens.
_base_ = './vit-mini_1xb64-20e_flowers17-96x96.py'

model = dict(backbone=dict(with_cls_token=False, out_type='avg_featmap', final_norm=False))
