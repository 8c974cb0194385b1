# TransReID erases more often with DeiT and ViT-S (0.8) than with ViT-B (0.5).
_base_ = './veri776_256x256.py'

input_size = (256, 256)  # height, width

train_pipeline = [
    dict(type='LoadReIDImage'),
    dict(type='Resize', scale=input_size[::-1], interpolation='bicubic', backend='pillow'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='mmpretrain.RandomCrop', crop_size=input_size, padding=10),
    # The noise is N(0, 1) after the normalisation by the model's data preprocessor.
    dict(type='PixelRandomErasing', erase_prob=0.8, mean=127.5, std=127.5),
    dict(type='PackReIDInputs'),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
