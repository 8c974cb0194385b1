"""What every gallery checks and prepares alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vitdown.evaluation.functional.inputs import Features, as_features, check_finite


def checked_features(features: Features, name: str, dim: int) -> torch.Tensor:
    """Finite features of shape (N, dim); ``name`` says in errors which."""
    features = as_features(features, name)
    if features.shape[1] != dim:
        raise ValueError(
            f'{name} have {features.shape[1]} dimensions, the gallery {dim}: they come '
            'from different models or heads'
        )
    check_finite(features, name)
    return features


def prepared(features: torch.Tensor, metric: str) -> np.ndarray:
    """Features as an index stores them: float32, of unit length for cosines."""
    features = features.float()
    if metric == 'cosine':
        features = torch.nn.functional.normalize(features, dim=1)
    return np.ascontiguousarray(features.cpu().numpy())


def as_ids(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Ids as int64.

    Raises:
        TypeError: If they are not integers.
        ValueError: If one is not below 2**63 - 1.
    """
    ids = np.asarray(ids)
    if ids.size and ids.dtype.kind not in 'iu':
        raise TypeError(f'ids must be integers, not {ids.dtype}')
    if ids.size and ids.max() >= np.iinfo(np.int64).max:
        raise ValueError(f'ids must be below 2**63 - 1, {ids.max()} is not')
    return ids.astype(np.int64)


def checked_ids(ids: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
    """New ids, int64 of shape (length,): not negative and all different."""
    ids = as_ids(ids)
    if ids.shape != (length,):
        raise ValueError(f'ids must have the shape ({length},), not {ids.shape}')
    if ids.min() < 0:
        raise ValueError(f'ids must not be negative, {ids.min()} is')
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) != length:
        raise ValueError(f'id {unique[counts > 1][0]} is given more than once')
    return ids


def check_unused(known: np.ndarray) -> None:
    """Raise ValueError if any of the new ids is in the gallery; ``known`` are those that are."""
    if len(known):
        raise ValueError(
            f'{len(known)} ids are in the gallery already, the first is {known[0]}: remove '
            'them before adding them again'
        )


def check_known(missing: np.ndarray) -> None:
    """Raise KeyError if any id is ``missing`` from the gallery."""
    if len(missing):
        raise KeyError(f'{len(missing)} ids are not in the gallery, the first is {missing[0]}')


def check_k(k: int) -> None:
    """Raise ValueError unless so many results can be asked for."""
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f'k must be at least 1, an integer, not {k!r}')


def check_dim(dim: int) -> None:
    """Raise ValueError unless features can have so many dimensions."""
    if not isinstance(dim, (int, np.integer)) or dim < 1:
        raise ValueError(f'dim must be a positive integer, not {dim!r}')
