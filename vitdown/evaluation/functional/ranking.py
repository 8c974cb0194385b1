"""Exact retrieval metrics without a distance matrix and without sorting the gallery by distance.

mAP, CMC and mINP of a query follow from the ranks of its positives alone, and a rank from the
number of negatives that score at least as high. So the scores of a block of queries are computed,
the negatives above each positive are counted, and the block is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .counting import count_at_least, find_between
from .inputs import Features, Labels, blocks_of, check_topk
from .protocol import RankingProtocol
from .sharing import Group, gather_rows, share_of
from .similarity import Distances, DistanceScores, FeatureScores

# A block whose rounding-prone pairs exceed this share is cheaper to recompute as a whole, and so is
# one with more positives in such pairs, on average, than this: each is a search through its row.
_MAX_SHARE_OF_PAIRS = 0.02
_MAX_SEARCHES_PER_ROW = 32
# Bytes that a score takes while its row is counted: the score itself (float64 where a block is
# recomputed, from parts of the gallery) and masks.
_BYTES_PER_SCORE = 16
# On a CPU, larger blocks than these don't make products faster, but fresh memory costs time.
_CPU_BLOCK_SCORES = 2**23
_CPU_BLOCK_ROWS = 256


def evaluate_ranking(
    query_features: Features,
    gallery_features: Features,
    query_ids: Labels,
    gallery_ids: Labels,
    query_cameras: Labels | None = None,
    gallery_cameras: Labels | None = None,
    metric: str = 'cosine',
    topk: Sequence[int] = (1, 5, 10),
    max_memory_mb: float = 512,
    *,
    self_index: Labels | None = None,
    return_per_query: bool = False,
    progress: bool = False,
    group: Group = None,
) -> dict[str, Any]:
    r"""Rank the gallery for each query and score the ranking: mAP, mINP and CMC.

    Gallery entries of the query's identity are positives, all others negatives. If cameras are
    given, entries with the query's identity *and* camera are junk, as in the protocol of
    Market-1501: they are taken out of the ranking. Queries without a positive are left out of all
    averages.

    * AP of a query: mean over its positives of the precision at the positive's rank (neither
      interpolated nor trapezoidal); mAP: mean over queries.
    * CMC\@k: share of the queries with a positive among the first k entries. If the gallery is
      shorter than k, the value of its last rank.
    * INP of a query: number of positives / rank of the last one (Ye et al., "Deep Learning for
      Person Re-identification: A Survey and Outlook", 2021); mINP: mean over queries.

    **Ties are ranked the pessimistic way**: a negative with the score of a positive stands before
    it. Positives of equal score share these negatives and follow one another. A model that gives
    all images the same feature thus gets the worst ranking there is.

    Scores are float32 matrix products; pairs too close for float32 are settled in float64, so that
    ranks are those of float64 scores (where scores count as equal if they differ by no more than
    float64 rounding).

    Args:
        query_features: (Q, D) tensor or array of any floating-point type, on any device.
        gallery_features: (G, D), on the same device.
        query_ids: (Q,) integers.
        gallery_ids: (G,) integers. Identities no query has are distractors: always negatives.
        query_cameras: (Q,) integers, or None for no removal of same-camera entries. Every number is
            a camera: where cameras are unknown, give None rather than -1.
        gallery_cameras: (G,) integers; both or neither.
        metric: ``'cosine'`` or ``'euclidean'`` (features as they are, not normalised).
        topk: Ranks k of CMC\@k.
        max_memory_mb: Bound, in MiB, of the memory for scores. It changes speed, not results. A
            float32 copy of the queries comes on top, and for other than cosines of float32 features
            one of the gallery.
        self_index: (Q,) for queries that are gallery images too: index of the query in the gallery,
            which is then left out of its ranking; -1 for queries that are not.
        return_per_query: Add arrays of the single queries to the result.
        progress: Show a progress bar if it takes longer than a few seconds.
        group: A process group, all of whose processes make this call with the same arguments: each
            ranks its share of the queries, all return the same result. None for one process.

    Returns:
        ``'mAP'``, ``'mINP'`` and ``'CMC@k'`` for each k, as fractions (0 to 1). With
        ``return_per_query`` also ``'AP'`` and ``'INP'`` ((Q,) float64, NaN where a query has no
        positive), ``'first_hit_rank'`` ((Q,) int64, counted from 1, 0 where there is none) and
        ``'num_valid_queries'``.

    Raises:
        TypeError: If features are not floating-point or labels are not integers.
        ValueError: If inputs are empty, don't fit one another, hold NaN or infinity, if cameras are
            given for one side only, no query has a positive, an option is unknown, or
            ``max_memory_mb`` is too little for one query.

    Example:
        >>> query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> gallery = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])
        >>> evaluate_ranking(query, gallery, [1, 2], [1, 2, 2], topk=(1,))
        {'mAP': 1.0, 'mINP': 1.0, 'CMC@1': 1.0}
    """
    ranks = check_topk(topk)
    scores = FeatureScores(query_features, gallery_features, metric)
    protocol = RankingProtocol.build(
        scores.shape, query_ids, gallery_ids, query_cameras, gallery_cameras, self_index
    )
    return _evaluate(scores, protocol, ranks, max_memory_mb, return_per_query, progress, group)


def evaluate_distances(
    distances: Distances,
    query_ids: Labels,
    gallery_ids: Labels,
    query_cameras: Labels | None = None,
    gallery_cameras: Labels | None = None,
    topk: Sequence[int] = (1, 5, 10),
    max_memory_mb: float = 512,
    *,
    self_index: Labels | None = None,
    return_per_query: bool = False,
    progress: bool = False,
    group: Group = None,
) -> dict[str, Any]:
    """As :func:`evaluate_ranking`, from distances instead of features.

    Args:
        distances: (Q, G) array, tensor, or object that computes rows on demand when it is sliced,
            such as :class:`~vitdown.evaluation.functional.RerankedDistances`. Small is near.
            Distances are compared as they are; only equal ones are ties.
        query_ids: See :func:`evaluate_ranking`, as for all other arguments, results and errors.
    """
    ranks = check_topk(topk)
    scores = DistanceScores(distances)
    protocol = RankingProtocol.build(
        scores.shape, query_ids, gallery_ids, query_cameras, gallery_cameras, self_index
    )
    return _evaluate(scores, protocol, ranks, max_memory_mb, return_per_query, progress, group)


def _evaluate(
    scores: FeatureScores | DistanceScores,
    protocol: RankingProtocol,
    topk: tuple[int, ...],
    max_memory_mb: float,
    return_per_query: bool,
    progress: bool,
    group: Group,
) -> dict[str, Any]:
    start, stop = share_of(scores.shape[0], group)
    with tqdm(
        total=stop - start, desc='ranking', unit='query', delay=3, disable=not progress
    ) as bar:
        queries = rank_queries(scores, protocol, max_memory_mb, bar.update, group)
    if not queries.valid.any():
        raise no_positives(*scores.shape)
    result: dict[str, Any] = queries.averages(topk)
    if return_per_query:
        result.update(
            AP=queries.ap,
            INP=queries.inp,
            first_hit_rank=queries.first_hit,
            num_valid_queries=int(queries.valid.sum()),
        )
    return result


@dataclass
class RankedQueries:
    """What the averages are made of.

    Attributes:
        ap: (Q,) float64 average precision, NaN where a query has no positive.
        inp: (Q,) float64 inverse negative penalty, likewise.
        first_hit: (Q,) int64 rank of the first positive, counted from 1; 0 where there is none.
    """

    ap: np.ndarray
    inp: np.ndarray
    first_hit: np.ndarray

    @classmethod
    def empty(cls, num_query: int) -> RankedQueries:
        """Queries without positives, to be filled."""
        nan = np.full(num_query, np.nan)
        return cls(nan, nan.copy(), np.zeros(num_query, dtype=np.int64))

    @property
    def valid(self) -> np.ndarray:
        """(Q,) bool: queries with a positive."""
        return self.first_hit > 0

    def put(
        self, where: slice | np.ndarray, ap: np.ndarray, inp: np.ndarray, hit: np.ndarray
    ) -> None:
        """Fill in some queries."""
        self.ap[where], self.inp[where], self.first_hit[where] = ap, inp, hit

    def averages(self, topk: Sequence[int]) -> dict[str, float]:
        """mAP, mINP and CMC over the queries with a positive, of which there must be one."""
        valid = self.valid
        result = {'mAP': float(self.ap[valid].mean()), 'mINP': float(self.inp[valid].mean())}
        for k in topk:
            result[f'CMC@{k}'] = float((self.first_hit[valid] <= k).mean())
        return result


def rank_queries(
    scores: FeatureScores | DistanceScores,
    protocol: RankingProtocol,
    max_memory_mb: float,
    advance: Callable[[int], object] = lambda count: None,
    group: Group = None,
) -> RankedQueries:
    """Rank the positives of all queries, block by block; ``advance`` hears of each block's size.

    Each process of the group ranks its share of the queries; all get all of them.
    """
    num_query, num_gallery = scores.shape
    on_cpu = scores.device.type == 'cpu'
    max_rows = max(_CPU_BLOCK_ROWS, _CPU_BLOCK_SCORES // num_gallery) if on_cpu else None
    row_bytes = num_gallery * _BYTES_PER_SCORE + protocol.pair_bytes()
    first, last = share_of(num_query, group)
    queries = RankedQueries.empty(last - first)
    for start, stop in blocks_of(row_bytes, max_memory_mb, (first, last), max_rows):
        rows, columns, junk = protocol.same_identity(start, stop)
        negatives = _negatives_above(scores, start, stop, rows, columns, junk)
        block = slice(start - first, stop - first)
        queries.put(block, *_summarise(rows[~junk], negatives, stop - start))
        advance(stop - start)
    return RankedQueries(*gather_rows((queries.ap, queries.inp, queries.first_hit), group))


def no_positives(num_query: int, num_gallery: int) -> ValueError:
    """The error for sets in which nothing can be found."""
    return ValueError(
        f'none of the {num_query} queries has a positive in the gallery of {num_gallery} '
        '(same identity, and another camera where cameras are given): check that query and '
        'gallery share identities and that camera ids are right'
    )


def _negatives_above(
    scores: FeatureScores | DistanceScores,
    start: int,
    stop: int,
    rows: np.ndarray,
    columns: np.ndarray,
    junk: np.ndarray,
) -> np.ndarray:
    """How many negatives stand before each positive of a block of queries, (positives,)."""
    block = scores.rows(start, stop)
    same = torch.as_tensor(rows * scores.shape[1] + columns, device=block.device)
    kept = torch.as_tensor(np.flatnonzero(~junk), device=block.device)
    row = torch.as_tensor(rows, device=block.device).index_select(0, kept)
    column = torch.as_tensor(columns, device=block.device).index_select(0, kept)
    reached = _take_out(block, same).index_select(0, kept)
    if not isinstance(scores, FeatureScores):
        return count_at_least(block, row, reached[:, None])[:, 0].cpu().numpy()

    margin = scores.tolerance[start + row]
    limits = torch.stack([reached - margin, reached + margin], dim=1)
    possible, certain = count_at_least(block, row, limits).unbind(dim=1)
    open_ = (possible > certain).nonzero()[:, 0]
    if not len(open_):
        return certain.cpu().numpy()
    if (
        len(open_) > _MAX_SEARCHES_PER_ROW * len(block)
        or (possible - certain).sum() > _MAX_SHARE_OF_PAIRS * block.numel()
    ):
        block = scores.rows_float64(start, stop)
        limits = _take_out(block, same).index_select(0, kept) - scores.tie[start + row]
        return count_at_least(block, row, limits[:, None])[:, 0].cpu().numpy()
    interval, rival = find_between(block, row[open_], limits[open_, 0], limits[open_, 1])
    query = start + row[open_]
    limit = scores.pairs(query, column[open_]) - scores.tie[query]
    before = scores.pairs(query[interval], rival) >= limit[interval]
    certain[open_] += torch.bincount(interval[before], minlength=len(open_))
    return certain.cpu().numpy()


def _take_out(block: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Scores at some places of a block, which then hold -inf and are never counted again.

    Neither positives nor junk are negatives: with them out of the way, only negatives count.
    """
    flat = block.view(-1)
    taken = flat.index_select(0, index)
    flat.index_fill_(0, index, -torch.inf)
    return taken


def _summarise(
    rows: np.ndarray, negatives: np.ndarray, num_rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AP, INP and first rank of each query of a block, from the negatives before its positives."""
    order = np.lexsort((negatives, rows))
    rows, negatives = rows[order], negatives[order]
    count = np.bincount(rows, minlength=num_rows)
    first = np.cumsum(count) - count
    hits = np.arange(len(rows)) - first[rows] + 1
    ranks = negatives + hits
    some = count > 0
    ap = np.full(num_rows, np.nan)
    inp = np.full(num_rows, np.nan)
    first_hit = np.zeros(num_rows, dtype=np.int64)
    precision = np.bincount(rows, weights=hits / ranks, minlength=num_rows)
    ap[some] = precision[some] / count[some]
    inp[some] = count[some] / ranks[(first + count - 1)[some]]
    first_hit[some] = ranks[first[some]]
    return ap, inp, first_hit
