_base_ = '../dcal/vit-mini_1xb64-40e_flowers17-96x96.py'

custom_hooks = [dict(type='SMMixHook')]
