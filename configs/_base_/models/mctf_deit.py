# DeiT with MCTF. Configs set arch, in_channels and the blocks that fuse. The weights to start from
# are DeiT's, head included: see configs/mctf/README.md.
model = dict(
    type='mmpretrain.ImageClassifier',
    data_preprocessor=dict(
        type='mmpretrain.ClsDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
        num_classes=1000,
    ),
    backbone=dict(
        type='vitdown.VisionTransformer',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        token_fusion=dict(
            type='MCTF',
            r=16,
            tau_sim=1.0,
            tau_info=20.0,
            tau_size=40.0,
            bidirectional=True,
            pooling='info_size',
            attention='one_step_ahead',
        ),
    ),
    head=dict(
        type='mmpretrain.VisionTransformerClsHead',
        num_classes=1000,
        loss=dict(type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)
