# Cascade Mask R-CNN with STViT-R-Swin-T
_base_ = './cascade-mask-rcnn_swin.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='vitdown.STViTSwin',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        pad_mask='exact',
        drop_path_rate=0.2,
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/stvit-r-swin-t_in1k.pth', source='stvit'
        ),
    )
)
