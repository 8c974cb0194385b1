# Train the teacher first, or set custom_hooks.0.teacher and custom_hooks.0.teacher_checkpoint.
_base_ = './vit-micro_1xb64-15e_omniglot-64x64.py'

custom_hooks = [
    dict(
        type='NKDHook',
        teacher='{{ fileDirname }}/../dcal/dcal_vit-mini_1xb64-40e_omniglot-64x64.py',
        teacher_checkpoint='work_dirs/dcal_vit-mini_1xb64-40e_omniglot-64x64/epoch_40.pth',
        temperature=1.0,
        gamma=1.0,
    )
]
