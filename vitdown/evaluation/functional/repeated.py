"""Protocols that draw the gallery at random, several times: one image of each identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from .inputs import Features, Labels, as_feature_pair, check_count, check_seed, check_topk
from .protocol import RankingProtocol
from .ranking import RankedQueries, no_positives, rank_queries
from .similarity import FeatureScores


def evaluate_single_gallery_shot(
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
    repeats: int = 100,
    seed: int = 0,
    self_index: Labels | None = None,
    return_per_query: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    r"""Rank galleries of one random image of each identity, and average over several draws.

    With cameras, this is the protocol of CUHK03 as it first was (Li et al., "DeepReID", CVPR 2014):
    the gallery of a query shows each identity once, from a camera other than the query's. Queries
    of one camera share their gallery. Without cameras, all queries share it.

    Args:
        query_features: See :func:`evaluate_ranking`, as for the arguments that are not listed.
        query_cameras: (Q,) integers; None to draw from all gallery images.
        repeats: Number of draws.
        seed: Seed of the draws; the same seed gives the same result.
        self_index: (Q,) for queries that are gallery images too: index of the query in the gallery,
            -1 for none. A query that is drawn itself is left out of that draw.
        return_per_query: Add arrays of the single queries to the result.

    Returns:
        ``'mAP'``, ``'mINP'`` and ``'CMC@k'`` for each k, as fractions (0 to 1): means over the
        draws; then their standard deviations (of the draws as they are, divisor n) as
        ``'mAP_std'`` and so on. With ``return_per_query`` also ``'AP'``, ``'INP'`` and
        ``'first_hit_rank'`` ((Q,) float64): means over the draws in which the query has a positive,
        NaN if there are none; and ``'num_valid_queries'``.

    Raises:
        TypeError: If features are not floating-point or labels are not integers.
        ValueError: For what :func:`evaluate_ranking` rejects, and for bad repeats or seeds.
    """
    ranks = check_topk(topk)
    check_count(repeats, 'repeats')
    check_seed(seed)
    query, gallery = as_feature_pair(query_features, gallery_features)
    shape = (len(query), len(gallery))
    protocol = RankingProtocol.build(
        shape, query_ids, gallery_ids, query_cameras, gallery_cameras, self_index
    )
    groups = _camera_groups(protocol)
    generator = np.random.default_rng(seed)
    averages = []
    totals = RankedQueries(np.zeros(shape[0]), np.zeros(shape[0]), np.zeros(shape[0], np.int64))
    count = np.zeros(shape[0], dtype=np.int64)
    for _ in tqdm(range(repeats), desc='draws', delay=3, disable=not progress):
        ranked = RankedQueries.empty(shape[0])
        for rows, candidates in groups:
            drawn = candidates[_one_of_each(protocol.gallery_ids[candidates], generator)]
            scores = FeatureScores(query[rows], gallery[drawn], metric)
            part = rank_queries(scores, _restricted(protocol, rows, drawn), max_memory_mb)
            ranked.put(rows, part.ap, part.inp, part.first_hit)
        valid = ranked.valid
        if valid.any():
            averages.append(ranked.averages(ranks))
        totals.ap[valid] += ranked.ap[valid]
        totals.inp[valid] += ranked.inp[valid]
        totals.first_hit += ranked.first_hit
        count += valid
    if not averages:
        raise no_positives(*shape)
    result: dict[str, Any] = {}
    for name in averages[0]:
        result[name] = float(np.mean([average[name] for average in averages]))
    for name in averages[0]:
        result[f'{name}_std'] = float(np.std([average[name] for average in averages]))
    if return_per_query:
        divisor = np.where(count > 0, count, np.nan)
        result.update(
            AP=totals.ap / divisor,
            INP=totals.inp / divisor,
            first_hit_rank=totals.first_hit / divisor,
            num_valid_queries=int((count > 0).sum()),
        )
    return result


def evaluate_vehicleid(
    features: Features,
    ids: Labels,
    metric: str = 'cosine',
    topk: Sequence[int] = (1, 5, 10),
    max_memory_mb: float = 512,
    *,
    repeats: int = 10,
    seed: int = 0,
    return_per_query: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """VehicleID's protocol: one random image of each vehicle is gallery, all others are queries.

    Source: Liu et al., "Deep Relative Distance Learning: Tell the Difference Between Similar
    Vehicles", CVPR 2016. Cameras play no part.

    Args:
        features: (N, D) all test images.
        ids: (N,) integers.
        metric: See :func:`evaluate_single_gallery_shot`, as for all other arguments, results and
            errors; every image is a query of the draws in which it is not the gallery's.
    """
    return evaluate_single_gallery_shot(
        features,
        features,
        ids,
        ids,
        metric=metric,
        topk=topk,
        max_memory_mb=max_memory_mb,
        repeats=repeats,
        seed=seed,
        self_index=np.arange(len(features)),
        return_per_query=return_per_query,
        progress=progress,
    )


def _camera_groups(protocol: RankingProtocol) -> list[tuple[slice | np.ndarray, np.ndarray]]:
    """Queries that share a gallery, and the gallery images it is drawn from."""
    if protocol.query_cameras is None:
        return [(slice(None), np.arange(len(protocol.gallery_ids)))]
    groups: list[tuple[slice | np.ndarray, np.ndarray]] = []
    for camera in np.unique(protocol.query_cameras):
        candidates = np.flatnonzero(protocol.gallery_cameras != camera)
        if len(candidates):
            groups.append((np.flatnonzero(protocol.query_cameras == camera), candidates))
    return groups


def _one_of_each(ids: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Index of one random entry of each identity, ascending."""
    order = np.lexsort((generator.random(len(ids)), ids))
    ordered = ids[order]
    first = np.r_[True, ordered[1:] != ordered[:-1]]
    return np.sort(order[first])


def _restricted(
    protocol: RankingProtocol, rows: slice | np.ndarray, drawn: np.ndarray
) -> RankingProtocol:
    """The protocol of some queries and gallery images, all of other cameras."""
    own = None
    if protocol.self_index is not None:
        position = np.full(len(protocol.gallery_ids) + 1, -1)
        position[drawn] = np.arange(len(drawn))
        own = position[protocol.self_index[rows]]
    return RankingProtocol(protocol.query_ids[rows], protocol.gallery_ids[drawn], None, None, own)
