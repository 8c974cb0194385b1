# A RegNetY-16GF teaches by its most likely class. Also halves the loss on labels, and nothing else.
cnn_distillation = dict(
    type='DistillationHook',
    losses=dict(loss_cnn=dict(type='CNNDistillationLoss', distill='hard')),
    teacher=dict(
        type='mmpretrain.TimmClassifier',
        model_name='regnety_160',
        data_preprocessor=dict(
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            to_rgb=True,
        ),
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
    ),
    teacher_checkpoint='regnety_160-a5fe301d.pth',
    taps=dict(student_dist='head.layers.head_dist', teacher_logits='model'),
)
