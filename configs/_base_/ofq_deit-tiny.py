# DeiT-T in low bits and what teaches it, as DeiT-S.
_base_ = './ofq_deit-small.py'

model = dict(backbone=dict(arch='deit-tiny'), head=dict(in_channels=192))

calibration, distillation, oscillation = _base_.custom_hooks
teacher = distillation.teacher
custom_hooks = [
    calibration,
    dict(
        distillation,
        teacher=dict(
            teacher,
            backbone=dict(teacher.backbone, arch='deit-tiny'),
            head=dict(teacher.head, in_channels=192),
        ),
        teacher_checkpoint='deit-tiny-distilled.pth',
    ),
    oscillation,
]
del calibration, distillation, oscillation, teacher

load_from = 'deit-tiny-distilled.pth'
