# The student alone, on 2,000 of the pack's images so that a run takes a minute.
_base_ = [
    '../_base_/models/cifar_resnet8.py',
    '../_base_/datasets/cifar10_32x32.py',
    '../_base_/schedules/sgd_cosine_10e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=64, num_workers=1, dataset=dict(indices=2000))
