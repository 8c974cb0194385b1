from .checkpoint_hook import SafeCheckpointHook
from .compatibility_hook import CompatibilityHook
from .epoch_seed_hook import EpochSeedHook

__all__ = ['CompatibilityHook', 'EpochSeedHook', 'SafeCheckpointHook']
