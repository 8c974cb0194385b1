# Second stage: from the first one's last checkpoint, with optimizer, 30 epochs at its last rate.
_base_ = './ofq-w3a3_deit-tiny_4xb140-300e_in1k-224.py'

default_hooks = dict(annealing=dict(type='CGAHook', boundary_range=0.005))

load_from = 'work_dirs/ofq-w3a3_deit-tiny_4xb140-300e_in1k-224/epoch_310.pth'
resume = True
train_cfg = dict(max_epochs=340)
