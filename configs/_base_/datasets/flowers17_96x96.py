# 1,020 / 340 photographs of 17 kinds of flowers, short side 144 in the packed file.
data_root = '{{$VITDOWN_DATA:data}}/flowers17'

train_pipeline = [
    dict(type='vitdown.LoadReIDImage'),
    dict(type='Resize', scale=(112, 112), interpolation='bicubic', backend='pillow'),
    dict(type='mmpretrain.RandomCrop', crop_size=96),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmpretrain.PackInputs'),
]
test_pipeline = [
    dict(type='vitdown.LoadReIDImage'),
    dict(type='Resize', scale=(112, 112), interpolation='bicubic', backend='pillow'),
    dict(type='mmpretrain.CenterCrop', crop_size=96),
    dict(type='mmpretrain.PackInputs'),
]

train_dataloader = dict(
    batch_size=64,  # on each GPU
    num_workers=2,
    persistent_workers=False,
    drop_last=True,
    worker_init_fn=dict(type='vitdown.seed_worker'),
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='Flowers17', data_root=data_root, split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=2,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='Flowers17', data_root=data_root, split='test', pipeline=test_pipeline),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
