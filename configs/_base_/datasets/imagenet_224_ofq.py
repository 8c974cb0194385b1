# ImageNet-1k as OFQ trains on it: DeiT's augmentation, and nine tenths of the test images.
_base_ = './imagenet_224_mctf.py'

load, _, *augment_and_pack = _base_.train_pipeline
train_pipeline = [
    load,
    dict(
        type='RandomChoice',
        transforms=[
            dict(
                type='mmpretrain.RandomResizedCrop',
                scale=224,
                backend='pillow',
                interpolation=interpolation,
            )
            for interpolation in ('bilinear', 'bicubic')
        ],
    ),
    *augment_and_pack,
]
test_pipeline = [
    load,
    dict(
        type='mmpretrain.ResizeEdge',
        scale=248,
        edge='short',
        backend='pillow',
        interpolation='bicubic',
    ),
    *_base_.test_pipeline[2:],
]
del load, augment_and_pack, _

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
