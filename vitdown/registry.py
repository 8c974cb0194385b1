"""Registries of vitdown: children of MMEngine's roots, in scope ``vitdown``.

Modules are imported on the first look-up, so ``import vitdown`` stays cheap. Types of other
OpenMMLab packages are reached with their scope, e.g. ``dict(type='mmpretrain.ResNet')``.
"""

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import PARAM_SCHEDULERS as MMENGINE_PARAM_SCHEDULERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import VISUALIZERS as MMENGINE_VISUALIZERS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='vitdown', locations=['vitdown.models'])
DATASETS = Registry(
    'dataset', parent=MMENGINE_DATASETS, scope='vitdown', locations=['vitdown.datasets']
)
DATA_SAMPLERS = Registry(
    'data sampler',
    parent=MMENGINE_DATA_SAMPLERS,
    scope='vitdown',
    locations=['vitdown.datasets'],
)
TRANSFORMS = Registry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='vitdown',
    locations=['vitdown.datasets.transforms'],
)
METRICS = Registry(
    'metric',
    parent=MMENGINE_METRICS,
    scope='vitdown',
    locations=['vitdown.evaluation.metrics'],
)
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='vitdown', locations=['vitdown.engine'])
PARAM_SCHEDULERS = Registry(
    'parameter scheduler',
    parent=MMENGINE_PARAM_SCHEDULERS,
    scope='vitdown',
    locations=['vitdown.engine'],
)
FUNCTIONS = Registry(
    'function', parent=MMENGINE_FUNCTIONS, scope='vitdown', locations=['vitdown.engine']
)
VISUALIZERS = Registry(
    'visualizer',
    parent=MMENGINE_VISUALIZERS,
    scope='vitdown',
    locations=['vitdown.visualization'],
)
