# The baseline of dcal_r50-vit-base_1xb16-100e_stanfordcars-448x448.py: self-attention alone.
_base_ = './dcal_r50-vit-base_1xb16-100e_stanfordcars-448x448.py'

model = dict(head=dict(glca=None, pwca=None, loss_weighting=None))
