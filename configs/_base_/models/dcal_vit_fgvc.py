# DCAL on a plain ViT for fine-grained classification: linear classifiers, summed probabilities.
# Configs set arch, img_size, in_channels and num_classes; mean and std of the pretrained weights.
# Here they are DeiT's.
model = dict(
    type='vitdown.TokenClassifier',
    data_preprocessor=dict(
        type='mmpretrain.ClsDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='vitdown.VisionTransformer',
        patch_size=16,
        drop_path_rate=0.1,
        out_type='cls_token',
    ),
    head=dict(
        type='vitdown.DCALHead',
        task='fgvc',
        loss_id=dict(type='mmpretrain.CrossEntropyLoss'),
        glca=dict(ratio=0.1, input='last', pool='cls', init='auto'),
        pwca=dict(enable=True, pairing='random', partner_stream='pwca'),
        loss_weighting=dict(type='vitdown.UncertaintyWeightedLoss', init=0.0),
        infer_branch='both',
    ),
)
