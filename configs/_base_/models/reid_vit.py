# Plain ViT with BNNeck: identity loss after, triplet loss and test feature before the batch norm.
# Configs set arch, img_size, in_channels and num_classes.
model = dict(
    type='ReIdentifier',
    data_preprocessor=dict(
        type='mmpretrain.ClsDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True
    ),
    backbone=dict(
        type='VisionTransformer',
        arch='deit-small',
        img_size=(256, 128),
        patch_size=16,
        drop_path_rate=0.1,
        out_type='cls_token',
    ),
    head=dict(
        type='BNNeckHead',
        num_classes=751,
        in_channels=384,
        neck_feat='before',
        loss_id=dict(type='mmpretrain.CrossEntropyLoss'),
        loss_metric=dict(type='TripletLoss', margin=None),
    ),
)

# Flip test-time augmentation (tools/test.py --tta): mean feature of the image and its mirror
tta_model = dict(type='ReIDTTAModel')
