# FGVC-Aircraft: 6,667 / 3,333 images of 100 variants.
data_root = '{{$VITDOWN_DATA:data}}/fgvc-aircraft-2013b'

train_pipeline = [
    dict(type='vitdown.LoadReIDImage'),
    dict(type='Resize', scale=(550, 550), interpolation='bicubic', backend='pillow'),
    dict(type='mmpretrain.RandomCrop', crop_size=448),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmpretrain.PackInputs'),
]
test_pipeline = [
    dict(type='vitdown.LoadReIDImage'),
    dict(type='Resize', scale=(550, 550), interpolation='bicubic', backend='pillow'),
    dict(type='mmpretrain.CenterCrop', crop_size=448),
    dict(type='mmpretrain.PackInputs'),
]

train_dataloader = dict(
    batch_size=16,  # on each GPU
    num_workers=8,
    persistent_workers=False,
    drop_last=True,  # pair-wise attention needs two images
    worker_init_fn=dict(type='vitdown.seed_worker'),
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmpretrain.FGVCAircraft',
        data_root=data_root,
        split='trainval',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpretrain.FGVCAircraft', data_root=data_root, split='test', pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
