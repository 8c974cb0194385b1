_base_ = [
    '../_base_/models/upernet_stvit-r-swin-mini.py',
    '../_base_/datasets/camvid_180x240.py',
    '../_base_/schedules/adamw_dense_4e.py',
    '../_base_/seg_runtime.py',
]

# epochs, not iterations
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1))
log_processor = dict(by_epoch=True)
