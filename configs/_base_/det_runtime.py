_base_ = './default_runtime.py'

default_scope = 'mmdet'

default_hooks = dict(
    checkpoint=dict(type='vitdown.SafeCheckpointHook'),
    epoch_seed=dict(type='vitdown.EpochSeedHook'),
    compatibility=dict(type='vitdown.CompatibilityHook'),
    visualization=dict(type='DetVisualizationHook'),
)
visualizer = dict(
    type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer'
)
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)

# images of a run have many sizes
env_cfg = dict(cudnn_benchmark=False)
