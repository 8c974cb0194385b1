"""Checks shared by the retrieval functions: what comes in is sound, or one message says why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Real
from typing import TypeAlias

import numpy as np
import torch

Features: TypeAlias = torch.Tensor | np.ndarray
Labels: TypeAlias = torch.Tensor | np.ndarray | Sequence[int]
METRICS = ('cosine', 'euclidean')


def as_feature_pair(
    query_features: Features, gallery_features: Features
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both feature sets as tensors of shape (Q, D) and (G, D) on one device.

    Raises:
        TypeError: If features are not arrays of floating-point numbers.
        ValueError: If a set is empty, not two-dimensional, not finite, or the two don't fit.
    """
    query = as_features(query_features, 'query_features')
    gallery = as_features(gallery_features, 'gallery_features')
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f'query_features have {query.shape[1]} dimensions and gallery_features '
            f'{gallery.shape[1]}: they come from different models or heads'
        )
    if query.device != gallery.device:
        raise ValueError(
            f'query_features are on {query.device} and gallery_features on {gallery.device}: '
            'move them to one device'
        )
    check_finite(query, 'query_features')
    check_finite(gallery, 'gallery_features')
    return query, gallery


def as_features(features: Features, name: str) -> torch.Tensor:
    """A floating-point tensor of shape (N, D), N and D at least 1."""
    if isinstance(features, np.ndarray):
        features = torch.from_numpy(as_native(features))
    if not isinstance(features, torch.Tensor):
        raise TypeError(f'{name} must be a tensor or an array, not {type(features).__name__}')
    if not features.is_floating_point():
        raise TypeError(f'{name} must be floating-point numbers, not {features.dtype}')
    if features.ndim != 2:
        raise ValueError(f'{name} must have the shape (N, D), not {tuple(features.shape)}')
    if 0 in features.shape:
        raise ValueError(f'{name} is empty: its shape is {tuple(features.shape)}')
    return features.detach()


def as_native(array: np.ndarray) -> np.ndarray:
    """The array in the layout and byte order that PyTorch takes, copied only where it must be."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder('='))


def check_finite(features: torch.Tensor, name: str) -> None:
    """Raise ValueError if a row holds NaN or infinity."""
    # Sums tell quickly which rows may be broken; a sum of finite values can overflow, too.
    broken = (~torch.isfinite(features.sum(dim=1))).nonzero()[:, 0]
    if len(broken):
        broken = broken[~torch.isfinite(features[broken]).all(dim=1)]
    if len(broken):
        raise ValueError(
            f'{name}: {len(broken)} of {len(features)} rows hold NaN or infinite values, the first '
            f'is row {int(broken[0])}; the model has diverged or overflows in half precision'
        )


def as_labels(values: Labels, name: str, length: int, what: str) -> np.ndarray:
    """An int64 array of shape (length,); ``what`` names what each label belongs to."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.dtype.kind not in 'iu':
        raise TypeError(f'{name} must be integers, not {array.dtype}')
    if array.shape != (length,):
        raise ValueError(
            f'{name} must hold one label for each of the {length} {what}; its shape is '
            f'{array.shape}'
        )
    return array.astype(np.int64, copy=False)


def check_metric(metric: str) -> None:
    """Raise ValueError unless the metric is known."""
    if metric not in METRICS:
        raise ValueError(f'metric must be one of {METRICS}, not {metric!r}')


def check_count(value: int, name: str) -> None:
    """Raise ValueError unless the value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f'{name} must be an integer of at least 1, not {value!r}')


def check_topk(topk: Sequence[int]) -> tuple[int, ...]:
    """Ranks as a tuple of integers; ValueError if they are anything else."""
    if (
        isinstance(topk, (str, int))
        or not isinstance(topk, (Sequence, np.ndarray))
        or not len(topk)
    ):
        raise ValueError(f'topk must be a sequence of ranks such as (1, 5, 10), not {topk!r}')
    for k in topk:
        check_count(k, 'topk: each rank')
    return tuple(int(k) for k in topk)


def rows_per_block(max_memory_mb: float, row_bytes: int, num_rows: int) -> int:
    """How many rows of ``row_bytes`` fit into the memory bound.

    Raises:
        ValueError: If the bound is no number above 0, or not even one row fits.
    """
    check_memory(max_memory_mb)
    budget = max_memory_mb * 2**20
    if budget < row_bytes:
        raise ValueError(
            f'max_memory_mb={max_memory_mb} is too little for the scores of a single query; '
            f'it takes at least {row_bytes / 2**20:.3g}'
        )
    return int(min(budget / row_bytes, num_rows))


def blocks_of(
    row_bytes: np.ndarray, max_memory_mb: float, rows: tuple[int, int], max_rows: int | None = None
) -> Iterator[tuple[int, int]]:
    """First row and the row after the last of successive blocks that fit into the memory bound.

    Args:
        row_bytes: (N,) what each row takes.
        max_memory_mb: The bound, in MiB.
        rows: First row and the row after the last of those to cut into blocks.
        max_rows: Rows that a block has at most.

    Raises:
        ValueError: If the bound is no number above 0, or there is a row that does not fit.
    """
    rows_per_block(max_memory_mb, int(row_bytes.max()), len(row_bytes))
    ends = np.cumsum(row_bytes)
    start, last = rows
    while start < last:
        limit = ends[start] - row_bytes[start] + max_memory_mb * 2**20
        stop = int(np.searchsorted(ends, limit, 'right'))
        stop = min(stop, last, start + (max_rows or last))
        yield start, stop
        start = stop


def check_memory(max_memory_mb: float) -> None:
    """Raise ValueError unless the bound is a number above 0; infinity is no bound."""
    if (
        isinstance(max_memory_mb, bool)
        or not isinstance(max_memory_mb, (Real, np.number))
        or not max_memory_mb > 0
    ):
        raise ValueError(
            f'max_memory_mb must be a number above 0 (infinity for no bound), not {max_memory_mb!r}'
        )


def check_device(device: str | torch.device) -> None:
    """Raise ValueError unless the device exists here, without starting it."""
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be e.g. 'cpu' or 'cuda', not {device!r}") from error
    if wanted.type == 'cuda' and (wanted.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f'device={str(device)!r} is not here: PyTorch finds {torch.cuda.device_count()} GPUs; '
            "use device='cpu'"
        )


def check_seed(seed: int) -> None:
    """Raise ValueError unless the value is an integer of at least 0."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f'seed must be an integer of at least 0, not {seed!r}')


def check_rates(rates: Sequence[float], name: str) -> tuple[float, ...]:
    """Rates as a tuple; ValueError unless each lies above 0 and not above 1."""
    if isinstance(rates, (str, float, int)) or not len(rates):
        raise ValueError(f'{name} must be a sequence of rates such as (1e-3, 1e-2), not {rates!r}')
    for rate in rates:
        if isinstance(rate, (str, bool)) or not 0 < rate <= 1:
            raise ValueError(f'{name}: each rate must be above 0 and at most 1, not {rate!r}')
    return tuple(float(rate) for rate in rates)
