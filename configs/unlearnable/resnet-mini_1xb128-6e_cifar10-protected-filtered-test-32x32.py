# A control: test images with their class' filter, by which the model has learnt to tell them.
_base_ = './resnet-mini_1xb128-6e_cifar10-protected-32x32.py'

test_pipeline = [
    dict(type='ConvUnlearnable', num_classes=10, kernel_size=3, blur_parameter=0.3),
    dict(type='mmpretrain.PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
