default_scope = 'vitdown'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # every epoch's random numbers follow from (seed, epoch, rank): resuming is exact
    epoch_seed=dict(type='EpochSeedHook'),
    compatibility=dict(type='CompatibilityHook'),
)

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

randomness = dict(seed=1234)
log_level = 'INFO'
load_from = None
resume = False
