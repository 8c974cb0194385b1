"""The first entries of each query's ranking list, for looking at them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .inputs import Features, Labels, blocks_of, check_count
from .protocol import RankingProtocol
from .similarity import Distances, DistanceScores, FeatureScores

# Bytes that a score takes while the nearest are searched, and an entry of a list while it is sorted
_BYTES_PER_SCORE = 16
_BYTES_PER_ENTRY = 64
_CPU_BLOCK_ROWS = 256


@dataclass
class RankingList:
    """The first k gallery images of each query, best first.

    Attributes:
        indices: (Q, k) int64 gallery indices, -1 where a list ends early.
        scores: (Q, k) the higher, the nearer: cosine for the metric ``'cosine'``, else the negative
            distance (not squared); -inf where a list ends early.
        matches: (Q, k) bool, entries of the query's identity (junk among them); None if identities
            are unknown.
        junk: (Q, k) bool, entries that an evaluation leaves out; None if identities are unknown.
    """

    indices: torch.Tensor
    scores: torch.Tensor
    matches: torch.Tensor | None
    junk: torch.Tensor | None


def topk_ranking(
    query_features: Features,
    gallery_features: Features,
    query_ids: Labels | None = None,
    gallery_ids: Labels | None = None,
    query_cameras: Labels | None = None,
    gallery_cameras: Labels | None = None,
    metric: str = 'cosine',
    k: int = 10,
    max_memory_mb: float = 512,
    *,
    self_index: Labels | None = None,
    drop_junk: bool = False,
) -> RankingList:
    """The k best gallery images of each query; the gallery is read in blocks of queries.

    Entries of equal score come in the order of the gallery.

    Args:
        query_features: (Q, D) tensor or array of any floating-point type, on any device.
        gallery_features: (G, D), on the same device.
        query_ids: (Q,) integers, or None if identities are unknown (then no flags are given).
        gallery_ids: (G,) integers; both or neither.
        query_cameras: (Q,) integers, see :func:`evaluate_ranking`; needs identities.
        gallery_cameras: (G,) integers; both or neither.
        metric: ``'cosine'`` or ``'euclidean'``.
        k: Length of the lists, cut to the size of the gallery.
        max_memory_mb: Bound, in MiB, of the memory for scores. The lists come on top, and a copy of
            the features as for :func:`evaluate_ranking`.
        self_index: (Q,) index of each query in the gallery, -1 for none; needs identities.
        drop_junk: Leave out junk instead of flagging it.

    Returns:
        The lists, on the device of the features.

    Raises:
        TypeError: If features are not floating-point or labels are not integers.
        ValueError: If inputs are empty, don't fit one another, hold NaN or infinity, or an option
            is out of range.
    """
    scores = FeatureScores(query_features, gallery_features, metric)
    protocol = _protocol(
        scores.shape, query_ids, gallery_ids, query_cameras, gallery_cameras, self_index, drop_junk
    )
    result = _first(scores, protocol, k, max_memory_mb, drop_junk)
    result.scores = scores.readable(result.scores)
    return result


def topk_distances(
    distances: Distances,
    query_ids: Labels | None = None,
    gallery_ids: Labels | None = None,
    query_cameras: Labels | None = None,
    gallery_cameras: Labels | None = None,
    k: int = 10,
    max_memory_mb: float = 512,
    *,
    self_index: Labels | None = None,
    drop_junk: bool = False,
) -> RankingList:
    """As :func:`topk_ranking`, from distances, e.g. re-ranked ones; scores are negative distances.

    Args:
        distances: (Q, G) array, tensor, or object that computes rows when it is sliced.
        query_ids: See :func:`topk_ranking`, as for all other arguments, results and errors.
    """
    scores = DistanceScores(distances)
    protocol = _protocol(
        scores.shape, query_ids, gallery_ids, query_cameras, gallery_cameras, self_index, drop_junk
    )
    return _first(scores, protocol, k, max_memory_mb, drop_junk)


def _protocol(
    shape: tuple[int, int],
    query_ids: Labels | None,
    gallery_ids: Labels | None,
    query_cameras: Labels | None,
    gallery_cameras: Labels | None,
    self_index: Labels | None,
    drop_junk: bool,
) -> RankingProtocol | None:
    if (query_ids is None) != (gallery_ids is None):
        raise ValueError('query_ids and gallery_ids must be given together, or neither')
    if query_ids is not None:
        return RankingProtocol.build(
            shape, query_ids, gallery_ids, query_cameras, gallery_cameras, self_index
        )
    if drop_junk or any(x is not None for x in (query_cameras, gallery_cameras, self_index)):
        raise ValueError(
            'cameras, self_index and drop_junk say what is junk, which needs query_ids and '
            'gallery_ids too'
        )
    return None


def _first(
    scores: FeatureScores | DistanceScores,
    protocol: RankingProtocol | None,
    k: int,
    max_memory_mb: float,
    drop_junk: bool,
) -> RankingList:
    check_count(k, 'k')
    num_query, num_gallery = scores.shape
    k = min(k, num_gallery)
    row_bytes = np.full(num_query, num_gallery * _BYTES_PER_SCORE + k * _BYTES_PER_ENTRY)
    if protocol is not None:
        row_bytes += protocol.pair_bytes()
    max_rows = _CPU_BLOCK_ROWS if scores.device.type == 'cpu' else None
    indices, values, matches, junk = [], [], [], []
    for start, stop in blocks_of(row_bytes, max_memory_mb, (0, num_query), max_rows):
        block = scores.rows(start, stop)
        if protocol is not None:
            same, is_junk = _masks(protocol, start, stop, block)
            if drop_junk:
                block[is_junk] = -torch.inf
        index, value = _stable_topk(block, k)
        ended = value == -torch.inf
        if protocol is not None:
            matches.append(same.gather(1, index) & ~ended)
            junk.append(is_junk.gather(1, index) & ~ended)
        indices.append(torch.where(ended, -1, index))
        values.append(value)
    return RankingList(
        torch.cat(indices),
        torch.cat(values),
        torch.cat(matches) if protocol is not None else None,
        torch.cat(junk) if protocol is not None else None,
    )


def _masks(
    protocol: RankingProtocol, start: int, stop: int, block: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which entries of a block are of the query's identity, and which of them are junk."""
    rows, columns, is_junk = (torch.from_numpy(x) for x in protocol.same_identity(start, stop))
    same = torch.zeros(block.shape, dtype=torch.bool, device=block.device)
    junk = torch.zeros_like(same)
    same[rows.to(block.device), columns.to(block.device)] = True
    junk[rows[is_junk].to(block.device), columns[is_junk].to(block.device)] = True
    return same, junk


def _stable_topk(block: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and values of the k largest of each row; of equal ones, the first."""
    last = block.topk(k, dim=1).values[:, -1:]
    # Everything above the last value belongs to the list; of what equals it, the first fill it up.
    taken = block >= last
    for row in (taken.sum(dim=1) > k).nonzero()[:, 0].tolist():
        equal = (block[row] == last[row]).nonzero()[:, 0]
        taken[row, equal[len(equal) - int(taken[row].sum()) + k :]] = False
    index = taken.nonzero()[:, 1].view(len(block), k)
    value = block.gather(1, index)
    order = value.sort(dim=1, descending=True, stable=True).indices
    return index.gather(1, order), value.gather(1, order)
