"""Query expansion: each query's feature is averaged with those of its nearest gallery images."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

from .inputs import (
    Features,
    Labels,
    as_feature_pair,
    as_labels,
    check_count,
    check_metric,
    rows_per_block,
)
from .topk import topk_ranking


def query_expansion(
    query_features: Features,
    gallery_features: Features,
    k: int = 10,
    alpha: float = 0.0,
    metric: str = 'cosine',
    max_memory_mb: float = 512,
    *,
    self_index: Labels | None = None,
) -> torch.Tensor:
    """Features of the queries, expanded by their k nearest gallery images.

    With ``alpha=0`` the plain mean of the query and its neighbours (AQE; Chum et al., "Total
    Recall", ICCV 2007, without the verification of neighbours). Otherwise a neighbour of cosine s
    has the weight ``max(s, 0) ** alpha`` and the query the weight 1 (alpha-QE; Radenovic et al.,
    "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018, with ``alpha=3``).
    Neighbours are chosen by features alone, whatever their identity or camera.

    Expanding the gallery by itself, ``query_expansion(gallery, gallery, self_index=range(G))``, is
    database-side augmentation.

    Args:
        query_features: (Q, D) tensor or array of any floating-point type, on any device.
        gallery_features: (G, D), on the same device.
        k: Number of neighbours, cut to the size of the gallery.
        alpha: Exponent of the weights, at least 0.
        metric: ``'cosine'``: features are normalised before and after averaging. ``'euclidean'``:
            neighbours by Euclidean distance, features as they are; ``alpha`` must be 0.
        max_memory_mb: Bound, in MiB, of the memory for scores and gathered features. One float32
            copy of the features comes on top.
        self_index: (Q,) index of each query in the gallery, -1 for none: no neighbour of itself.

    Returns:
        (Q, D) on the device of the features, float32 (float64 if the queries are).

    Raises:
        TypeError: If features are not floating-point or indices are not integers.
        ValueError: If features are empty, not finite or don't fit each other, or an option is
            out of range.
    """
    query, gallery = as_feature_pair(query_features, gallery_features)
    check_metric(metric)
    check_count(k, 'k')
    check_alpha(alpha, metric)
    cosine = metric == 'cosine'
    index, scores = _neighbours(query, gallery, k, metric, max_memory_mb, self_index)
    # Infinity marks the end of a list shortened by the query itself.
    ended = scores == -torch.inf
    weights = scores.clamp(min=0).pow(alpha) if alpha > 0 else torch.ones_like(scores)
    weights.masked_fill_(ended, 0)

    dtype = torch.promote_types(query.dtype, torch.float32)
    expanded = query.to(dtype, copy=True)
    if cosine:
        expanded = normalize(expanded, dim=1)
    row_bytes = 3 * index.shape[1] * query.shape[1] * dtype.itemsize
    step = rows_per_block(max_memory_mb, row_bytes, len(query))
    for start in range(0, len(query), step):
        block = slice(start, start + step)
        weight = weights[block].to(dtype)
        neighbours = gallery[index[block]].to(dtype)
        if cosine:
            neighbours = normalize(neighbours, dim=2)
        expanded[block] += (weight[:, None] @ neighbours)[:, 0]
        expanded[block] /= 1 + weight.sum(dim=1, keepdim=True)
    return normalize(expanded, dim=1) if cosine else expanded


def check_alpha(alpha: float, metric: str) -> None:
    """Raise ValueError unless the exponent of the weights is at least 0 and fits the metric."""
    if isinstance(alpha, (bool, str)) or not 0 <= alpha < float('inf'):
        raise ValueError(f'alpha must be a number of at least 0, not {alpha!r}')
    if alpha > 0 and metric != 'cosine':
        raise ValueError(
            f"alpha={alpha} weights neighbours by their cosine: use metric='cosine' or alpha=0"
        )


def _neighbours(
    query: torch.Tensor,
    gallery: torch.Tensor,
    k: int,
    metric: str,
    max_memory_mb: float,
    self_index: Labels | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and scores (Q, k) of the nearest gallery images; score -inf where a list ends."""
    if self_index is None:
        lists = topk_ranking(query, gallery, metric=metric, k=k, max_memory_mb=max_memory_mb)
        return lists.indices, lists.scores
    own = as_labels(self_index, 'self_index', len(query), 'query features')
    outside = np.flatnonzero((own < -1) | (own >= len(gallery)))
    if len(outside):
        raise ValueError(
            f'self_index of query {outside[0]} is {own[outside[0]]}, outside the gallery of '
            f'{len(gallery)}'
        )
    lists = topk_ranking(query, gallery, metric=metric, k=k + 1, max_memory_mb=max_memory_mb)
    itself = lists.indices == torch.from_numpy(own).to(query.device)[:, None]
    scores = lists.scores.masked_fill(itself, -torch.inf)
    # The query itself moves to the end of its list.
    order = itself.byte().sort(dim=1, stable=True).indices[:, :k]
    return lists.indices.gather(1, order), scores.gather(1, order)
