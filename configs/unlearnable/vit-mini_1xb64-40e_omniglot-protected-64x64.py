# Re-ID: every character is a class of its own. Protected training images, clean test images.
_base_ = '../reid/vit-mini_1xb64-40e_omniglot-64x64.py'

train_pipeline = [
    dict(type='LoadReIDImage'),
    dict(type='ConvUnlearnable', num_classes=137, kernel_size=5, blur_parameter=0.2),
    dict(type='Resize', scale=(64, 64), interpolation='bicubic', backend='pillow'),
    dict(type='mmpretrain.RandomCrop', crop_size=64, padding=4, pad_val=(255, 255, 255)),
    dict(type='PackReIDInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
