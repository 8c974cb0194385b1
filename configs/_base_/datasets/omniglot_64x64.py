# No flip: a mirrored character is another one. Paper is white, and so is the padding.
data_root = '{{$VITDOWN_DATA:data}}/omniglot'
input_size = (64, 64)  # height, width

# No random erasing: small models trained from scratch don't fit the training set as it is.
train_pipeline = [
    dict(type='LoadReIDImage'),
    dict(type='Resize', scale=input_size[::-1], interpolation='bicubic', backend='pillow'),
    dict(type='mmpretrain.RandomCrop', crop_size=input_size, padding=4, pad_val=(255, 255, 255)),
    dict(type='PackReIDInputs'),
]
test_pipeline = [
    dict(type='LoadReIDImage'),
    dict(type='Resize', scale=input_size[::-1], interpolation='bilinear', backend='pillow'),
    dict(type='PackReIDInputs'),
]

train_dataloader = dict(
    batch_size=64,  # on each GPU
    num_workers=2,
    persistent_workers=False,
    worker_init_fn=dict(type='vitdown.seed_worker'),
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='IdentitySampler', num_identities=16, num_instances=4),
    dataset=dict(type='Omniglot', data_root=data_root, subset='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=2,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='Omniglot', data_root=data_root, subset='test', pipeline=test_pipeline),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='ReIDMetric')
test_evaluator = val_evaluator
