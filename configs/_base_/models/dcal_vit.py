# DCAL on a plain ViT: global-local and pair-wise cross-attention beside self-attention.
# Configs set arch, img_size, in_channels and num_classes.
_base_ = './reid_vit.py'

model = dict(
    head=dict(
        type='DCALHead',
        task='reid',
        glca=dict(ratio=0.3, input='last', pool='cls', init='auto'),
        pwca=dict(enable=True, pairing='random', partner_stream='pwca'),
        loss_weighting=dict(type='UncertaintyWeightedLoss', init=0.0),
        infer_branch='both',
    ),
)
