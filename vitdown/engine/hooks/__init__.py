from mmengine.registry import HOOKS as ROOT_HOOKS

from .adversarial_training_hook import DeconvolutionTrainingHook, PGDTrainingHook
from .checkpoint_hook import SafeCheckpointHook
from .compatibility_hook import CompatibilityHook
from .distillation_hook import (
    DistillationHook,
    DKDHook,
    KDHook,
    NKDHook,
    StopDistillHook,
    USKDHook,
    ViTKDHook,
)
from .epoch_seed_hook import EpochSeedHook
from .progress_bar_hook import ProgressBarHook
from .pruning_hook import PruningHook
from .quantization_hooks import CGAHook, OscillationHook, QuantCalibrationHook
from .ranking_list_hook import RankingListHook
from .semi_structured_sparsity_hook import SemiStructuredSparsityHook
from .smmix_hook import SMMixHook
from .token_consistency_hook import TokenConsistencyHook

__all__ = [
    'CGAHook',
    'CompatibilityHook',
    'DKDHook',
    'DeconvolutionTrainingHook',
    'DistillationHook',
    'EpochSeedHook',
    'KDHook',
    'NKDHook',
    'OscillationHook',
    'PGDTrainingHook',
    'ProgressBarHook',
    'QuantCalibrationHook',
    'PruningHook',
    'RankingListHook',
    'SMMixHook',
    'SafeCheckpointHook',
    'SemiStructuredSparsityHook',
    'StopDistillHook',
    'TokenConsistencyHook',
    'USKDHook',
    'ViTKDHook',
]

# Configs whose scope is another package's (mmpretrain's, say) look up names there and in MMEngine's
# registry: that is how they find vitdown's hooks without a scope.
for _name in __all__:
    ROOT_HOOKS.register_module(module=globals()[_name])
