# All of the pack's 10,000 training images of 100 classes.
_base_ = './uskd_resnet8_1xb64-10e_cifar10-32x32.py'

data_root = '{{$VITDOWN_DATA:data}}/cifar100'
model = dict(data_preprocessor=dict(num_classes=100), head=dict(num_classes=100))
train_dataloader = dict(dataset=dict(data_root=data_root, indices=10000))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
