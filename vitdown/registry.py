"""Registries of vitdown: children of MMEngine's roots, in scope ``vitdown``.

Modules are imported on the first look-up, so ``import vitdown`` stays cheap. Types of other
OpenMMLab packages are reached with their scope, e.g. ``dict(type='mmpretrain.ResNet')``.
"""

import mmengine.registry as root
from mmengine.registry import Registry


def _child(parent: Registry, *locations: str) -> Registry:
    return Registry(parent.name, parent=parent, scope='vitdown', locations=list(locations))


MODELS = _child(root.MODELS, 'vitdown.models')
DATASETS = _child(root.DATASETS, 'vitdown.datasets')
DATA_SAMPLERS = _child(root.DATA_SAMPLERS, 'vitdown.datasets')
TRANSFORMS = _child(root.TRANSFORMS, 'vitdown.datasets.transforms')
METRICS = _child(root.METRICS, 'vitdown.evaluation.metrics')
VISUALIZERS = _child(root.VISUALIZERS, 'vitdown.visualization')
HOOKS = _child(root.HOOKS, 'vitdown.engine')
PARAM_SCHEDULERS = _child(root.PARAM_SCHEDULERS, 'vitdown.engine')
FUNCTIONS = _child(root.FUNCTIONS, 'vitdown.engine')

# Nothing of vitdown's own lives in these: they lead look-ups in scope ``vitdown`` to MMEngine's.
EVALUATORS = _child(root.EVALUATOR)
LOG_PROCESSORS = _child(root.LOG_PROCESSORS)
LOOPS = _child(root.LOOPS)
MODEL_WRAPPERS = _child(root.MODEL_WRAPPERS)
OPTIM_WRAPPERS = _child(root.OPTIM_WRAPPERS)
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS)
OPTIMIZERS = _child(root.OPTIMIZERS)
RUNNERS = _child(root.RUNNERS)
TASK_UTILS = _child(root.TASK_UTILS)
VISBACKENDS = _child(root.VISBACKENDS)
WEIGHT_INITIALIZERS = _child(root.WEIGHT_INITIALIZERS)
