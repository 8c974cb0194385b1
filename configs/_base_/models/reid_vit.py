# Plain ViT with BNNeck: identity loss after, triplet loss and test feature before the batch norm.
# Configs set arch, img_size, in_channels and num_classes.
model = dict(
    type='ReIdentifier',
    data_preprocessor=dict(
        type='mmpretrain.ClsDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True
    ),
    backbone=dict(
        type='VisionTransformer',
        patch_size=16,
        drop_path_rate=0.1,
        out_type='cls_token',
    ),
    head=dict(
        type='BNNeckHead',
        neck_feat='before',
        loss_id=dict(type='mmpretrain.CrossEntropyLoss'),
        loss_metric=dict(type='TripletLoss', margin=None),
    ),
)

# Flip test-time augmentation (tools/test.py --tta): mean feature of the image and its mirror
tta_model = dict(type='ReIDTTAModel')
