# A ViT of four layers and width 64, for a CPU; clean images.
_base_ = [
    '../_base_/datasets/cifar10_32x32.py',
    '../_base_/schedules/adamw_cosine_40e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='mmpretrain.ImageClassifier',
    data_preprocessor=dict(
        type='mmpretrain.ClsDataPreprocessor',
        mean=[0.0] * 3,
        std=[255.0] * 3,
        to_rgb=True,
        num_classes=10,
    ),
    backbone=dict(
        type='vitdown.VisionTransformer',
        arch=dict(embed_dims=64, num_layers=4, num_heads=2, feedforward_channels=128),
        img_size=(32, 32),
        patch_size=4,
        out_type='cls_token',
    ),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
    ),
)
param_scheduler = dict(warmup_epochs=2)
train_cfg = dict(max_epochs=12, val_interval=12)
auto_scale_lr = dict(base_batch_size=128)
