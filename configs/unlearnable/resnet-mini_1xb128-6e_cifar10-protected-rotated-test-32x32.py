# A control: test images with the filter of the next class, which misleads the model.
_base_ = './resnet-mini_1xb128-6e_cifar10-protected-32x32.py'

test_pipeline = [
    dict(type='ConvUnlearnable', num_classes=10, kernel_size=3, blur_parameter=0.3, class_shift=1),
    dict(type='mmpretrain.PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
