import random

import numpy as np
import torch

from vitdown.registry import FUNCTIONS


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators, those of all devices included."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """A seed for one epoch of one process, well mixed: near-by arguments give unrelated seeds."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint32)[0])


@FUNCTIONS.register_module()
def seed_worker(worker_id: int) -> None:
    """Seed a data loading worker from the seed that PyTorch drew for it in this epoch.

    MMEngine's default gives each worker the same seed in every epoch, so that without persistent
    workers the same augmentations come back epoch after epoch.
    """
    seed = torch.initial_seed()
    random.seed(seed)
    np.random.seed(seed % 2**32)
