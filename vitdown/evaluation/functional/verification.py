"""Verification: do two images show the same identity? ROC curve and TPR at given FPR.

All pairs of a query and a gallery image count, but for junk. A pair is accepted if its score
reaches a threshold. Pairs of one identity that are accepted, as a share of all such pairs, are the
true positive rate (TPR); accepted pairs of different identities likewise the false positive rate
(FPR).

Scores are counted in histograms, never kept. For the TPR at an FPR, one pass over the scores finds
the bin of the threshold, and a second one counts inside this bin, in bins as fine as float64
products can tell scores apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from .inputs import Features, Labels, blocks_of, check_rates
from .protocol import RankingProtocol
from .similarity import FeatureScores

# A score is a number of 2 x 18 bits: the bin of the first pass and the bin within it.
_BITS = 18
_BINS = 2**_BITS
_LAST = 2 ** (2 * _BITS) - 1
# Bytes that a score takes: float64, its integer and what arises in between.
_BYTES_PER_SCORE = 48
_CPU_BLOCK_ROWS = 256


@dataclass
class RocCurve:
    """Points of a ROC curve, by falling threshold, from (0, 0) to (1, 1).

    Attributes:
        fpr: (n,) share of the pairs of different identities that are accepted.
        tpr: (n,) share of the pairs of one identity that are accepted.
        thresholds: (n,) pairs with at least this score are accepted; infinity first. Scores are
            cosines or negative Euclidean distances.
    """

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray


def roc_curve(
    query_features: Features,
    gallery_features: Features,
    query_ids: Labels,
    gallery_ids: Labels,
    query_cameras: Labels | None = None,
    gallery_cameras: Labels | None = None,
    metric: str = 'cosine',
    max_memory_mb: float = 512,
    *,
    self_index: Labels | None = None,
) -> RocCurve:
    """ROC curve over all pairs; each point is exact, thresholds go in steps.

    Thresholds are the multiples of 2^-17 for cosines, and as many steps (2^18) over the range of
    the squared Euclidean distances; steps without a score are left out.

    Args:
        query_features: See :func:`tpr_at_fpr`, as for all other arguments and errors.
    """
    pairs = _Pairs.build(
        query_features, gallery_features, query_ids, gallery_ids, query_cameras, gallery_cameras,
        self_index, metric, max_memory_mb,
    )  # fmt: skip
    negatives, positives = pairs.count_coarse()
    filled = np.flatnonzero(negatives + positives)[::-1]
    fpr, tpr = (
        np.r_[0.0, accepted / accepted[-1]]
        for accepted in (np.cumsum(counts[filled]) for counts in (negatives, positives))
    )
    # Rounding to the nearest: half a step below the first score of a bin.
    lower = (filled * float(_BINS) - 0.5) / _LAST * 2 - 1
    return RocCurve(fpr, tpr, np.r_[np.inf, pairs.scores.as_printed(lower)])


def tpr_at_fpr(
    query_features: Features,
    gallery_features: Features,
    query_ids: Labels,
    gallery_ids: Labels,
    query_cameras: Labels | None = None,
    gallery_cameras: Labels | None = None,
    fpr: Sequence[float] = (1e-4, 1e-3, 1e-2),
    metric: str = 'cosine',
    max_memory_mb: float = 512,
    *,
    self_index: Labels | None = None,
) -> dict[str, float]:
    """The largest true positive rate whose false positive rate does not exceed a limit.

    There is no interpolation. **Ties count the pessimistic way**: pairs of equal score are accepted
    together or not at all, so a model that gives all images the same feature has the rate 0. Scores
    are float64 cosines compared in steps of 2^-35 (3e-11), or squared Euclidean distances in 2^36
    steps over their range. A limit that is smaller than one pair's share of the negatives asks for
    no false positive at all. Queries without a positive count: their pairs are negatives.

    Args:
        query_features: (Q, D) tensor or array of any floating-point type, on any device.
        gallery_features: (G, D), on the same device.
        query_ids: (Q,) integers.
        gallery_ids: (G,) integers.
        query_cameras: (Q,) integers: pairs of the same identity *and* camera are junk and left out.
            None for no removal.
        gallery_cameras: (G,) integers; both or neither.
        fpr: Limits, above 0 and at most 1.
        metric: ``'cosine'`` or ``'euclidean'``.
        max_memory_mb: Bound, in MiB, of the memory for scores. Histograms (4 MiB, and as much for
            each limit) and one copy of the features come on top. It changes speed, not results.
        self_index: (Q,) index of each query in the gallery, -1 for none: pairs that are left out.

    Returns:
        ``'TPR@FPR=0.001'`` for each limit, as fractions (0 to 1).

    Raises:
        TypeError: If features are not floating-point or labels are not integers.
        ValueError: If inputs are empty, don't fit one another, hold NaN or infinity, an option is
            out of range, or there are no pairs of one identity or none of different ones.
    """
    limits = check_rates(fpr, 'fpr')
    pairs = _Pairs.build(
        query_features, gallery_features, query_ids, gallery_ids, query_cameras, gallery_cameras,
        self_index, metric, max_memory_mb,
    )  # fmt: skip
    negatives, positives = pairs.count_coarse()
    num_negatives, num_positives = negatives.sum(), positives.sum()
    # The first negative that must not be accepted, counted from the best one from 0. Limits are
    # the decimal numbers they were written as: 0.29 of 100 are 29.
    rejected = [math.floor(Fraction(str(limit)) * int(num_negatives)) for limit in limits]
    above = np.cumsum(negatives[::-1])
    bins = [
        _BINS - 1 - int(np.searchsorted(above, rank, 'right')) for rank in rejected
    ]  # -1 where all are accepted
    fine = pairs.count_fine(sorted({b for b in bins if b >= 0}))
    result = {}
    for limit, rank, b in zip(limits, rejected, bins):
        accepted = int(positives[b + 1 :].sum())
        if b >= 0:
            within_negatives, within_positives = fine[b]
            rank -= int(negatives[b + 1 :].sum())
            place = int(np.searchsorted(np.cumsum(within_negatives[::-1]), rank, 'right'))
            accepted += int(within_positives[::-1][:place].sum())
        result[f'TPR@FPR={limit:g}'] = float(accepted / num_positives)
    return result


@dataclass
class _Pairs:
    """All pairs of queries and gallery images, as integers that order them by their score."""

    scores: FeatureScores
    protocol: RankingProtocol
    blocks: list[tuple[int, int]]

    @classmethod
    def build(
        cls,
        query_features: Features,
        gallery_features: Features,
        query_ids: Labels,
        gallery_ids: Labels,
        query_cameras: Labels | None,
        gallery_cameras: Labels | None,
        self_index: Labels | None,
        metric: str,
        max_memory_mb: float,
    ) -> _Pairs:
        scores = FeatureScores(query_features, gallery_features, metric)
        protocol = RankingProtocol.build(
            scores.shape, query_ids, gallery_ids, query_cameras, gallery_cameras, self_index
        )
        row_bytes = scores.shape[1] * _BYTES_PER_SCORE + protocol.pair_bytes()
        max_rows = _CPU_BLOCK_ROWS if scores.device.type == 'cpu' else None
        blocks = blocks_of(row_bytes, max_memory_mb, (0, scores.shape[0]), max_rows)
        return cls(scores, protocol, list(blocks))

    def count_coarse(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of negatives and positives in each bin, (bins,) int64.

        Raises:
            ValueError: If there are no negatives or no positives.
        """
        counts = np.zeros((2, _BINS), dtype=np.int64)
        for keys, positives, junk in self._blocks():
            counts += _count(keys >> _BITS, positives >> _BITS, junk >> _BITS)
        for kind, total in zip(('different identities', 'one identity'), counts.sum(axis=1)):
            if not total:
                raise ValueError(
                    f'there are no pairs of {kind} among {self.scores.shape[0]} queries and '
                    f'{self.scores.shape[1]} gallery images (those of the same identity and camera '
                    'are left out): rates are not defined'
                )
        return counts[0], counts[1]

    def count_fine(self, bins: Sequence[int]) -> dict[int, np.ndarray]:
        """Numbers of negatives and positives inside some bins, (2, bins) int64 each."""
        counts = {b: np.zeros((2, _BINS), dtype=np.int64) for b in bins}
        if bins:
            for block in self._blocks():
                for b in bins:
                    counts[b] += _count(*(x[x >> _BITS == b] & (_BINS - 1) for x in block))
        return counts

    def _blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Integers of all pairs of a block of queries, of the positives and of the junk."""
        for start, stop in self.blocks:
            scores = self.scores.rows_between_queries(start, stop).add_(1).mul_(_LAST / 2)
            keys = scores.round_().long().view(-1)
            del scores
            rows, columns, junk = self.protocol.same_identity(start, stop)
            same = torch.from_numpy(rows * self.scores.shape[1] + columns).to(keys.device)
            is_junk = torch.from_numpy(junk).to(keys.device)
            yield keys, keys[same[~is_junk]], keys[same[is_junk]]


def _count(keys: torch.Tensor, positives: torch.Tensor, junk: torch.Tensor) -> np.ndarray:
    """Numbers of negatives and positives of each key, (2, bins)."""
    total, hits, left_out = (
        torch.bincount(x, minlength=_BINS).cpu().numpy() for x in (keys, positives, junk)
    )
    return np.stack([total - hits - left_out, hits])
