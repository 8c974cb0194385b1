# UPerNet with STViT-R-Swin-T for ADE20K
_base_ = './upernet_swin.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='vitdown.STViTSwin',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        pad_mask='exact',
        drop_path_rate=0.3,
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/stvit-r-swin-t_in1k.pth', source='stvit'
        ),
    )
)
