_base_ = './default_runtime.py'

default_scope = 'mmseg'

default_hooks = dict(
    checkpoint=dict(type='vitdown.SafeCheckpointHook', by_epoch=False, interval=16000),
    epoch_seed=dict(type='vitdown.EpochSeedHook'),
    compatibility=dict(type='vitdown.CompatibilityHook'),
    visualization=dict(type='SegVisualizationHook'),
)
visualizer = dict(
    type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer'
)
log_processor = dict(by_epoch=False)
tta_model = dict(type='SegTTAModel')
