# ResNet-56 trained on CIFAR-10 (93.3 % of the pack's test images), to learn from.
_base_ = './cifar_resnet20_teacher.py'

teacher = dict(backbone=dict(depth=56))
teacher_checkpoint = '{{$VITDOWN_DATA:data}}/weights/cifar10_resnet56_fp16.pth'
