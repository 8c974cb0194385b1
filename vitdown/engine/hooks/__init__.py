from .adversarial_training_hook import DeconvolutionTrainingHook, PGDTrainingHook
from .checkpoint_hook import SafeCheckpointHook
from .compatibility_hook import CompatibilityHook
from .epoch_seed_hook import EpochSeedHook
from .progress_bar_hook import ProgressBarHook
from .ranking_list_hook import RankingListHook
from .token_consistency_hook import TokenConsistencyHook

__all__ = [
    'CompatibilityHook',
    'DeconvolutionTrainingHook',
    'EpochSeedHook',
    'PGDTrainingHook',
    'ProgressBarHook',
    'RankingListHook',
    'SafeCheckpointHook',
    'TokenConsistencyHook',
]
