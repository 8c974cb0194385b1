# DCAL for classification small enough for a CPU: six layers of width 128, from scratch.
_base_ = [
    '../_base_/models/dcal_vit_fgvc.py',
    '../_base_/datasets/flowers17_96x96.py',
    '../_base_/schedules/adamw_cosine_40e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        arch=dict(embed_dims=128, num_layers=6, num_heads=4, feedforward_channels=512),
        img_size=(96, 96),
        patch_size=8,
        drop_path_rate=0.0,
    ),
    head=dict(num_classes=17, in_channels=128),
)

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(log_vars=dict(decay_mult=0.0))))
