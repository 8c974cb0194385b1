"""One evaluation of query and gallery: protocol, re-ranking, query expansion, verification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from .feature_set import FeatureSet, cameras_known, find_same_images
from .functional import (
    RankingList,
    RerankedDistances,
    evaluate_distances,
    evaluate_ranking,
    evaluate_single_gallery_shot,
    evaluate_vehicleid,
    k_reciprocal_rerank,
    query_expansion,
    topk_distances,
    topk_ranking,
    tpr_at_fpr,
)
from .functional.expansion import check_alpha
from .functional.inputs import (
    check_count,
    check_device,
    check_memory,
    check_metric,
    check_rates,
    check_seed,
    check_topk,
)
from .functional.sharing import Group

PROTOCOLS = ('auto', 'cross-camera', 'plain', 'single-gallery-shot', 'vehicleid')
# Number of draws, where the gallery is drawn
REPEATS = {'single-gallery-shot': 100, 'vehicleid': 10}
_PER_QUERY = ('AP', 'INP', 'first_hit_rank', 'num_valid_queries')


@dataclass
class EvaluationOptions:
    """How features are evaluated.

    Attributes:
        metric: ``'cosine'`` or ``'euclidean'``.
        topk: Ranks k of CMC@k.
        protocol: ``'cross-camera'``: gallery images of the query's identity and camera are left out
            (Market-1501, MSMT17, VeRi, VERI-Wild, which differ in their lists only); ``'plain'``:
            cameras play no part; ``'auto'``: the former where cameras are known, else the latter;
            ``'single-gallery-shot'``: see :func:`evaluate_single_gallery_shot`; ``'vehicleid'``:
            see :func:`evaluate_vehicleid`, drawn from the images of query and gallery together.
        rerank: True, or a dict of ``k1``, ``k2``, ``lambda_value``.
        query_expansion: True, or a dict of ``k``, ``alpha``.
        tpr_at_fpr: False rates; see :func:`tpr_at_fpr`.
        repeats: Number of draws of the gallery; None for 100 (single gallery shot), 10 (VehicleID).
        seed: Seed of the draws.
        max_memory_mb: Bound, in MiB, of the memory for blocks of scores.
        device: Where scores are computed.

    Raises:
        ValueError: If an option is unknown, out of range, or doesn't go with the protocol, or there
            is no such device.
    """

    metric: str = 'cosine'
    topk: Sequence[int] = (1, 5, 10)
    protocol: str = 'auto'
    rerank: bool | dict[str, Any] = False
    query_expansion: bool | dict[str, Any] = False
    tpr_at_fpr: Sequence[float] = ()
    repeats: int | None = None
    seed: int = 0
    max_memory_mb: float = 512
    device: str = 'cpu'

    def __post_init__(self) -> None:
        check_metric(self.metric)
        self.topk = check_topk(self.topk)
        if self.protocol not in PROTOCOLS:
            raise ValueError(f'protocol must be one of {PROTOCOLS}, not {self.protocol!r}')
        _check_options(self.rerank, 'rerank', {'k1', 'k2', 'lambda_value'})
        _check_options(self.query_expansion, 'query_expansion', {'k', 'alpha'})
        if isinstance(self.query_expansion, dict):
            check_count(self.query_expansion.get('k', 1), 'query_expansion: k')
            check_alpha(self.query_expansion.get('alpha', 0), self.metric)
        if isinstance(self.tpr_at_fpr, (float, int, str)) or len(self.tpr_at_fpr):
            self.tpr_at_fpr = check_rates(self.tpr_at_fpr, 'tpr_at_fpr')
        check_seed(self.seed)
        check_memory(self.max_memory_mb)
        check_device(self.device)
        if self.repeats is not None:
            check_count(self.repeats, 'repeats')
            if not self.is_drawn:
                raise ValueError(
                    f'repeats={self.repeats} needs a protocol that draws the gallery: one of '
                    f'{tuple(REPEATS)}, not {self.protocol!r}'
                )
        if self.is_drawn:
            for name in ('rerank', 'query_expansion', 'tpr_at_fpr'):
                if getattr(self, name) not in (False, (), []):
                    raise ValueError(
                        f'{name} needs a fixed gallery, which protocol={self.protocol!r} has not: '
                        "leave it out, or use 'cross-camera' or 'plain'"
                    )

    @property
    def is_drawn(self) -> bool:
        """Whether the gallery is drawn at random, several times."""
        return self.protocol in REPEATS


@dataclass
class Evaluation:
    """Results of one evaluation.

    Attributes:
        protocol: What was evaluated, in words.
        metrics: As fractions (0 to 1): ``mAP``, ``mINP``, ``CMC@k``; with query expansion and
            re-ranking the same as ``qe_mAP`` and ``rerank_mAP``; ``TPR@FPR=f``; for galleries that
            are drawn, means over the draws and standard deviations (``mAP_std``).
        query: The queries that :attr:`per_query` is about.
        per_query: ``AP``, ``INP`` and ``first_hit_rank`` of each query, (Q,); likewise with
            ``qe_`` and ``rerank_``.
        num_valid_queries: Number of queries with a positive.
    """

    protocol: str
    metrics: dict[str, float]
    query: FeatureSet
    per_query: dict[str, np.ndarray]
    num_valid_queries: int
    _ranked: _Ranked = field(repr=False)

    def ranking_lists(self, k: int) -> tuple[RankingList, np.ndarray]:
        """First k gallery images of each query of the set as given, without junk, and each AP.

        Of the re-ranked lists if there are any, else of those after query expansion, if any.
        """
        return self._ranked.lists(k), self._ranked.scores['AP']


@dataclass
class _Ranked:
    """What ranking lists are made of: expanded queries or re-ranked distances, where used."""

    features: tuple[torch.Tensor, torch.Tensor]
    labels: dict[str, Any]
    options: EvaluationOptions
    distances: RerankedDistances | None = None
    group: Group = None

    def _call(self, of_features: Callable, of_distances: Callable, **options: Any) -> Any:
        options.update(self.labels, max_memory_mb=self.options.max_memory_mb)
        if self.distances is not None:
            return of_distances(self.distances, **options)
        return of_features(*self.features, metric=self.options.metric, **options)

    def lists(self, k: int) -> RankingList:
        return self._call(topk_ranking, topk_distances, k=k, drop_junk=True)

    @cached_property
    def scores(self) -> dict[str, Any]:
        return self._call(
            evaluate_ranking,
            evaluate_distances,
            topk=self.options.topk,
            return_per_query=True,
            progress=True,
            group=self.group,
        )


def evaluate_feature_sets(
    query: FeatureSet,
    gallery: FeatureSet,
    options: EvaluationOptions,
    self_index: np.ndarray | None = None,
    group: Group = None,
) -> Evaluation:
    """Evaluate features by a protocol, and what is asked for beside it.

    Args:
        query: Query images.
        gallery: Gallery images.
        options: How to evaluate.
        self_index: (Q,) index of each query in the gallery, -1 for none; None to find images of the
            same path and identity.
        group: A process group, all of whose processes make this call with the same arguments: each
            ranks its share of the queries (drawn galleries are ranked by all), all return the same.

    Raises:
        ValueError: If cameras are needed and unknown, or known for some images only, and for what
            :func:`evaluate_ranking` rejects.
    """
    if self_index is None:
        self_index = find_same_images(query, gallery)
    cross_camera = _uses_cameras(query, gallery, options.protocol)
    labels: dict[str, Any] = {
        'query_ids': query.ids,
        'gallery_ids': gallery.ids,
        'self_index': self_index,
    }
    if cross_camera:
        labels.update(query_cameras=query.cameras, gallery_cameras=gallery.cameras)
    queries = torch.from_numpy(query.features).to(options.device)
    images = torch.from_numpy(gallery.features).to(options.device)
    ranked = _Ranked((queries, images), labels, options, group=group)
    if options.is_drawn:
        return _evaluate_drawn(query, gallery, ranked)

    results = {'': ranked.scores}
    common: dict[str, Any] = {'metric': options.metric, 'max_memory_mb': options.max_memory_mb}
    if options.query_expansion is not False:
        expanded = query_expansion(
            queries,
            images,
            **_as_dict(options.query_expansion),
            **common,
            self_index=self_index,
        )
        ranked = _Ranked((expanded, images), labels, options, group=group)
        results['qe_'] = ranked.scores
    if options.rerank is not False:
        distances = k_reciprocal_rerank(
            queries,
            images,
            **_as_dict(options.rerank),
            **common,
            progress=True,
            group=group,
        )
        ranked = _Ranked((queries, images), labels, options, distances, group)
        results['rerank_'] = ranked.scores
    metrics: dict[str, Any] = {}
    per_query: dict[str, Any] = {}
    for prefix, result in results.items():
        for name, value in result.items():
            (per_query if name in _PER_QUERY else metrics)[prefix + name] = value
    count = per_query['num_valid_queries']
    for prefix in results:
        del per_query[f'{prefix}num_valid_queries']
    if options.tpr_at_fpr:
        metrics.update(tpr_at_fpr(queries, images, **labels, **common, fpr=options.tpr_at_fpr))
    protocol = 'cross-camera' if cross_camera else 'plain, only the query itself is left out'
    return Evaluation(protocol, metrics, query, per_query, count, ranked)


def _evaluate_drawn(query: FeatureSet, gallery: FeatureSet, ranked: _Ranked) -> Evaluation:
    """The protocols that draw the gallery several times."""
    options, labels = ranked.options, ranked.labels
    repeats = options.repeats or REPEATS[options.protocol]
    common: dict[str, Any] = {
        'metric': options.metric,
        'topk': options.topk,
        'max_memory_mb': options.max_memory_mb,
        'repeats': repeats,
        'seed': options.seed,
        'return_per_query': True,
        'progress': True,
    }
    if options.protocol == 'vehicleid':
        query = _united(query, gallery, labels['self_index'])
        result = evaluate_vehicleid(
            torch.from_numpy(query.features).to(options.device), query.ids, **common
        )
        what = "VehicleID's, one image of each identity is the gallery"
    else:
        result = evaluate_single_gallery_shot(
            ranked.features[0], ranked.features[1], **labels, **common
        )
        what = 'single gallery shot, one image of each identity'
        what += ' from another camera' if 'query_cameras' in labels else ''
    count = result.pop('num_valid_queries')
    per_query = {name: result.pop(name) for name in _PER_QUERY if name in result}
    protocol = f'{what}, {repeats} draws, seed {options.seed}'
    return Evaluation(protocol, result, query, per_query, count, ranked)


def _united(query: FeatureSet, gallery: FeatureSet, self_index: np.ndarray) -> FeatureSet:
    """All images once: the queries, then what else the gallery holds."""
    rest = np.setdiff1d(np.arange(len(gallery)), self_index)
    return FeatureSet(
        *(
            np.concatenate([getattr(query, key), getattr(gallery, key)[rest]])
            for key in ('features', 'ids', 'cameras', 'paths')
        )
    )


def _uses_cameras(query: FeatureSet, gallery: FeatureSet, protocol: str) -> bool:
    if protocol in ('plain', 'vehicleid'):
        return False
    known = cameras_known(query, gallery)
    if protocol == 'cross-camera' and not known:
        raise ValueError(
            "protocol='cross-camera' needs camera ids, and no image has one: give them, or use "
            "'plain'"
        )
    return known


def _as_dict(options: bool | dict[str, Any]) -> dict[str, Any]:
    return options if isinstance(options, dict) else {}


def _check_options(given: bool | dict[str, Any], name: str, known: set[str]) -> None:
    if not isinstance(given, (bool, dict)):
        raise ValueError(f'{name} must be True, False or a dict of options, not {given!r}')
    unknown = sorted(set(_as_dict(given)) - known)
    if unknown:
        raise ValueError(f'{name} knows {sorted(known)}, not {unknown}')
