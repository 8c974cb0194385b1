_base_ = ['./market1501_256x128.py']

data_root = '{{$VITDOWN_DATA:data}}/dukemtmc'

train_dataloader = dict(dataset=dict(type='DukeMTMCReID', data_root=data_root))
val_dataloader = dict(dataset=dict(type='DukeMTMCReID', data_root=data_root))
test_dataloader = val_dataloader
