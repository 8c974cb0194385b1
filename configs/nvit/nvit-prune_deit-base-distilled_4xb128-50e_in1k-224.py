# NViT's pruning of distilled DeiT-B: one run, a model at each of four shares of the latency.
# Needs deit-base-distilled.pth, regnety_160-a5fe301d.pth and a latency table; see README.md.
_base_ = [
    '../_base_/models/nvit_deit-base-distilled.py',
    '../_base_/datasets/imagenet_224_mctf.py',
    '../_base_/schedules/nvit_adamw.py',
    '../_base_/nvit_cnn_distillation.py',
    '../_base_/default_runtime.py',
]

heads = dict(cls='head.layers.head', dist='head.layers.head_dist')
custom_hooks = [
    {{_base_.cnn_distillation}},
    dict(
        type='DistillationHook',
        losses=dict(loss_full=dict(type='FullModelLoss', temperature=3.0, per_head=False)),
        teacher='{{ fileDirname }}/../_base_/models/nvit_deit-base-distilled.py',
        teacher_checkpoint='deit-base-distilled.pth',
        taps=dict(
            student_cls=heads['cls'],
            student_dist=heads['dist'],
            teacher_cls=heads['cls'],
            teacher_dist=heads['dist'],
        ),
    ),
    dict(
        type='PruningHook',
        cost='latency',
        latency_table='work_dirs/latency_deit-base.json',
        targets=[0.54, 0.50, 0.39, 0.19],
        interval=100,
        prune_per_event=32,
        momentum=0.9,
        switch_to_eval=True,
        losses_from_first_event=['loss_full'],
        recipe='{{ fileDirname }}/nvit-finetune_proxy-s_8xb144-300e_in1k-224.py',
    ),
]
load_from = 'deit-base-distilled.pth'
