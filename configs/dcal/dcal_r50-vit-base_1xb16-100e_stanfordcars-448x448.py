_base_ = './dcal_vit-base_1xb16-100e_stanfordcars-448x448.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='vitdown.HybridVisionTransformer',
        arch='vit-base',
        img_size=448,
        drop_path_rate=0.1,
        out_type='cls_token',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/jx_vit_base_resnet50_384-9fd3c705.pth',
            source='timm-hybrid',
        ),
    ),
)
