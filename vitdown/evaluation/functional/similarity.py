"""Scores of query-gallery pairs, block by block, from features or from distances."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch

from .inputs import Features, as_feature_pair, as_native, check_metric

# Numbers that element-wise work takes at a time. On a CPU so few that they stay in the cache and
# that PyTorch doesn't share the work among threads, whose meeting would take longer than the work.
_CPU_CHUNK = 2**15
_CHUNK = 2**24
# Queries farther from the gallery than so many times its radius are brought nearer: float32 ends
# at 3e38.
_FAR = 1e30


class Distances(Protocol):
    """Anything that gives rows of a distance matrix: an array, a tensor or a lazy object."""

    shape: tuple[int, int]

    def __getitem__(self, rows: slice) -> torch.Tensor | np.ndarray:
        """Distances of some queries to the whole gallery, (rows, G)."""


class FeatureScores:
    """Scores of all query-gallery pairs; the higher, the more alike.

    With the metric ``'cosine'`` the score of a pair is the cosine of the angle between the features
    (0 where one of them is zero), with ``'euclidean'`` it is :math:`q g - |g|^2 / 2`, which orders
    the gallery of a query as the Euclidean distance does. For the latter, features are first moved
    so that the gallery's mean is the origin: distances don't change, and the cancellation between
    the two terms stays small.

    Scores are matrix products in float32, whatever the features' precision (TF32 and autocast are
    kept out). :attr:`tolerance` says how close two scores of a query must be for rounding to
    decide their order; for such pairs :meth:`pairs` gives scores in float64.

    Args:
        query_features: (Q, D), any floating-point type.
        gallery_features: (G, D).
        metric: ``'cosine'`` or ``'euclidean'``.

    Attributes:
        shape: (Q, G).
        device: Where scores are computed: where the features are.
        tolerance: (Q,) float32; scores of a query that differ by more are in the right order.
        tie: (Q,) float64; float64 scores of a query that differ by no more are equal.
    """

    def __init__(
        self, query_features: Features, gallery_features: Features, metric: str = 'cosine'
    ) -> None:
        check_metric(metric)
        self._query, self._gallery = as_feature_pair(query_features, gallery_features)
        self.shape = (len(self._query), len(self._gallery))
        self.device = self._query.device
        one = torch.ones((), dtype=torch.float64, device=self.device)
        if metric == 'cosine':
            self._offset = 0 * one
            self._query_scale = _or_one(_lengths(self._query, self._offset))
            self._gallery_scale = _or_one(_lengths(self._gallery, self._offset))
            self._half_square = None
            magnitude = one.expand(self.shape[0])
        else:
            self._offset = self._gallery.mean(dim=0, dtype=torch.float64)
            # Distances relative to the farthest gallery feature: no square overflows.
            lengths = _lengths(self._gallery, self._offset)
            radius = _or_one(lengths.max())
            self._query_scale = radius.expand(self.shape[0])
            self._gallery_scale = radius.expand(self.shape[1])
            self._half_square = (lengths / radius).square() / 2
            magnitude = _lengths(self._query, self._offset) / radius + 1
        # No pair is farther apart than this: the farthest query and the farthest gallery feature.
        self._reach = magnitude.max()
        # Rounding errors of a sum over D terms grow like the root of D; the input's rounding and,
        # for the Euclidean score, the subtraction add a few units. Two scores: twice the error.
        steps = 2 * (math.sqrt(self._query.shape[1]) + 4)
        self.tolerance = (steps * 2.0**-24 * magnitude.clamp(max=_FAR)).float()
        self.tie = 16 * steps * 2.0**-53 * magnitude
        # So far away, products decide alone, and only these shrink: the order stays.
        shrink = (magnitude / _FAR).clamp(min=1)
        self._query32 = self._prepare32(self._query, self._query_scale * shrink)
        self._column_scale = None
        if metric == 'cosine' and self._fits_products(self._gallery, self._gallery_scale):
            # Scaling the scores instead saves a copy of the gallery.
            self._gallery32 = self._gallery
            self._column_scale = (1 / self._gallery_scale).float()
        else:
            self._gallery32 = self._prepare32(self._gallery, self._gallery_scale)
        self._buffer: torch.Tensor | None = None

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Scores of the queries ``start <= i < stop`` with the whole gallery, float32.

        The result lies in a buffer that the next call overwrites; the caller may write to it.
        """
        stop = min(stop, self.shape[0])
        if self._buffer is None or len(self._buffer) < stop - start:
            self._buffer = torch.empty(stop - start, self.shape[1], device=self.device)
        out = self._buffer[: stop - start]
        with full_precision(self.device):
            torch.mm(self._query32[start:stop], self._gallery32.t(), out=out)
        if self._column_scale is not None:
            out *= self._column_scale
        if self._half_square is not None:
            out -= self._half_square
        return out

    def rows_float64(self, start: int, stop: int) -> torch.Tensor:
        """As :meth:`rows`, computed in float64 from the features as they were given."""
        query = self._prepare(self._query[start:stop], self._query_scale[start:stop])
        out = query.new_empty(len(query), self.shape[1])
        # Each part is a product: larger ones are faster, but must stay small beside the result.
        numbers = min(max(out.numel() // 8, _CPU_CHUNK), _CHUNK)
        for part in parts_of(self.shape[1], self._gallery, numbers):
            gallery = self._prepare(self._gallery[part], self._gallery_scale[part])
            out[:, part] = query @ gallery.t()
        if self._half_square is not None:
            out -= self._half_square
        return out

    def pairs(self, query_index: torch.Tensor, gallery_index: torch.Tensor) -> torch.Tensor:
        """Float64 scores of single pairs, (n,), from the features as they were given."""
        scores = torch.empty(len(query_index), dtype=torch.float64, device=self.device)
        for part in parts_of(len(query_index), self._query):
            q, g = query_index[part], gallery_index[part]
            query = self._query.index_select(0, q).double() - self._offset
            gallery = self._gallery.index_select(0, g).double() - self._offset
            scale = self._query_scale.index_select(0, q) * self._gallery_scale.index_select(0, g)
            scores[part] = query.mul_(gallery).sum(dim=1) / scale
        if self._half_square is not None:
            scores -= self._half_square[gallery_index]
        return scores

    def rows_between_queries(self, start: int, stop: int) -> torch.Tensor:
        """Float64 scores that can be compared between queries, too, from -1 to 1.

        Cosines; or, for Euclidean distances d, ``1 - 2 (d / reach)^2``, where no distance is larger
        than the reach. :meth:`as_printed` translates them.
        """
        scores = self.rows_float64(start, stop)
        if self._half_square is not None:
            lengths = (
                _lengths(self._query[start:stop], self._offset) / self._query_scale[start:stop]
            )
            scores.mul_(2).sub_(lengths.square()[:, None])
            scores.mul_(2 / self._reach.square()).add_(1)
        return scores.clamp_(-1, 1)

    def as_printed(self, scores: np.ndarray) -> np.ndarray:
        """Scores of :meth:`rows_between_queries` as cosines or negative Euclidean distances."""
        if self._half_square is None:
            return scores
        farthest = float(self._reach * self._query_scale[0])
        return -np.sqrt(np.maximum(1 - scores, 0) / 2) * farthest

    def readable(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores (Q, n) as one would print them: cosines, or negative Euclidean distances."""
        if self._half_square is None:
            return scores
        lengths = _lengths(self._query, self._offset) / self._query_scale
        squares = lengths.square()[:, None] - 2 * scores.double()
        return (-squares.clamp_(min=0).sqrt() * self._query_scale[:, None]).to(scores.dtype)

    @staticmethod
    def _fits_products(features: torch.Tensor, lengths: torch.Tensor) -> bool:
        """Whether float32 products with vectors of length 1 neither overflow nor vanish."""
        low, high = lengths.aminmax()
        return features.dtype == torch.float32 and bool((low > 1e-12) & (high < 1e12))

    def _prepare(self, features: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Features as they enter the product, in float64."""
        return (features.double() - self._offset) / scale[:, None]

    def _prepare32(self, features: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """As :meth:`_prepare`, rounded to float32, without a float64 copy of all."""
        out = torch.empty(features.shape, device=self.device)
        for part in parts_of(len(features), features):
            out[part] = self._prepare(features[part], scale[part])
        return out


class DistanceScores:
    """Rows of a distance matrix as scores: the same, negated."""

    def __init__(self, distances: Distances) -> None:
        shape = tuple(getattr(distances, 'shape', ()))
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f'distances must have the shape (Q, G), not {shape}')
        self.shape = shape
        self.device = torch.device(getattr(distances, 'device', 'cpu'))
        self._distances = distances

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Scores of the queries ``start <= i < stop``; the caller may write to the result."""
        rows = self._distances[start : min(stop, self.shape[0])]
        rows = torch.as_tensor(as_native(rows) if isinstance(rows, np.ndarray) else rows)
        if rows.dtype not in (torch.float32, torch.float64):
            rows = rows.float() if rows.is_floating_point() else rows.double()
        broken = (~torch.isfinite(rows)).any(dim=1).nonzero()[:, 0]
        if len(broken):
            raise ValueError(f'distances: row {start + int(broken[0])} holds NaN or infinity')
        return rows.neg().contiguous()


def parts_of(count: int, features: torch.Tensor, numbers: int | None = None) -> Iterator[slice]:
    """Parts of ``count`` rows of such features, of so many numbers that work on them is fast."""
    if numbers is None:
        numbers = _CPU_CHUNK if features.device.type == 'cpu' else _CHUNK
    step = max(1, numbers // features.shape[1])
    return (slice(i, i + step) for i in range(0, count, step))


def _lengths(features: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Distances to the offset in float64, (N,)."""
    out = torch.empty(len(features), dtype=torch.float64, device=features.device)
    for part in parts_of(len(features), features):
        out[part] = (features[part].double() - offset).norm(dim=1)
    return out


def _or_one(lengths: torch.Tensor) -> torch.Tensor:
    """1 in place of 0, so that lengths can be divided by."""
    return torch.where(lengths > 0, lengths, torch.ones_like(lengths))


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in true float32: no autocast, no TF32 or bfloat16 inside."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('highest')
    try:
        with torch.autocast(device.type, enabled=False), torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
