# The baseline of stvit-vit-mini_1xb64-20e_flowers17-96x96.py: all layers on 12x12 patches.
_base_ = '../dcal/vit-mini_1xb64-40e_flowers17-96x96.py'

train_cfg = dict(max_epochs=20, val_interval=20)
