# What USKD's soft labels are compared with: the same ones for all images.
_base_ = './resnet8_1xb64-10e_cifar10-32x32.py'

model = dict(
    head=dict(
        loss=dict(
            _delete_=True, type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1, mode='original'
        )
    )
)
