# COCO128, from tools/dataset_converters/unpack_coco.py: a smoke test, not a benchmark
_base_ = './nuclei_instance_256.py'

data_root = '{{$VITDOWN_DATA:data}}/coco128/'
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=dict(_delete_=True),
        filter_cfg=dict(filter_empty_gt=True),
    )
)
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=dict(_delete_=True)))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = val_evaluator
