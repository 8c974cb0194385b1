# A hierarchical backbone: the feature is the mean of its last map, 8x4.
_base_ = '../reid/deit-small_1xb64-120e_market1501-256x128.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='STViTSwin',
        arch='small',
        img_size=(256, 128),
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/stvit-r-swin-s_in1k.pth', source='stvit'
        ),
    ),
    head=dict(in_channels=768),
)
