"""Re-identification metrics: mAP, mINP and CMC of a test set's ranking lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from vitdown.evaluation.functional import (
    RankingList,
    evaluate_distances,
    evaluate_ranking,
    k_reciprocal_rerank,
    topk_distances,
    topk_ranking,
)
from vitdown.evaluation.functional.inputs import check_metric, check_topk
from vitdown.registry import METRICS

_SUBSETS = ('query', 'gallery', 'both')
_REQUIRED = ('feature', 'identity', 'camera_id', 'subset')
_RERANK_OPTIONS = {'k1', 'k2', 'lambda_value'}


@dataclass
class Ranking:
    """Ranking lists of an evaluation with what is needed to show them.

    Attributes:
        lists: First gallery images of each query, without junk.
        query: Labels of the queries, Q long: ``'ids'``, ``'cameras'``, ``'paths'`` and
            ``'positions'`` (index in the test set).
        gallery: Labels of the gallery, likewise.
        average_precision: (Q,) AP of each list, NaN without a positive.
    """

    lists: RankingList
    query: dict[str, np.ndarray]
    gallery: dict[str, np.ndarray]
    average_precision: np.ndarray


@METRICS.register_module()
class ReIDMetric(BaseMetric):
    r"""Ranks the gallery for each query by feature similarity and scores the ranking, in percent.

    One test loader gives query and gallery images in any order; each sample's ``subset`` tells them
    apart (``'both'``: the image is a query and, for all others, a gallery image).

    If camera ids are known, gallery images of the query's identity *and* camera are left out, as is
    usual in re-ID; if none is known (all -1), only the query image itself is. See
    :func:`~vitdown.evaluation.functional.evaluate_ranking` for definitions and the treatment of
    ties.

    Reported are ``mAP``, ``mINP`` and ``CMC@k``, and with re-ranking the same once more as
    ``rerank_mAP`` and so on.

    Args:
        metric: ``'cosine'`` or ``'euclidean'``.
        topk: Ranks k of CMC\@k.
        rerank: True to evaluate the k-reciprocally re-ranked lists too, or a dict of its options
            ``k1``, ``k2``, ``lambda_value``.
        max_memory_mb: Bound, in MiB, of the memory for blocks of scores.
        device: Where scores are computed, e.g. ``'cuda'``. Features are collected on the CPU in any
            case.
        feature_dtype: ``'float32'`` or ``'float16'``, how features are kept.
        num_ranked: Keep the first so many gallery images of each query, for pictures, in
            :attr:`ranking` (of the re-ranked lists, if there are any).
        out_file: Save features, labels and image paths of query and gallery to this ``.npz`` file.
        collect_device: How features of several processes are brought together, ``'cpu'`` or
            ``'gpu'``.
        prefix: Prefix of the metrics' names.

    Example:
        >>> test_evaluator = dict(type='ReIDMetric', rerank=dict(k1=20, k2=6, lambda_value=0.3))
    """

    default_prefix = 'reid'

    def __init__(
        self,
        metric: str = 'cosine',
        topk: Sequence[int] = (1, 5, 10),
        rerank: bool | dict[str, Any] = False,
        max_memory_mb: float = 512,
        device: str = 'cpu',
        feature_dtype: str = 'float32',
        num_ranked: int = 0,
        out_file: str | Path | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        check_metric(metric)
        if feature_dtype not in ('float32', 'float16'):
            raise ValueError(f"feature_dtype must be 'float32' or 'float16', not {feature_dtype!r}")
        if out_file is not None and Path(out_file).suffix != '.npz':
            raise ValueError(f'out_file must end in .npz: {str(out_file)!r}')
        options = rerank if isinstance(rerank, dict) else {}
        unknown = sorted(set(options) - _RERANK_OPTIONS)
        if unknown:
            raise ValueError(f'rerank knows {sorted(_RERANK_OPTIONS)}, not {unknown}')
        self.metric = metric
        self.topk = check_topk(topk)
        self.rerank = dict(options) if rerank is not False else None
        self.max_memory_mb = max_memory_mb
        self.device = device
        self.feature_dtype = getattr(torch, feature_dtype)
        self.num_ranked = num_ranked
        self.ranking: Ranking | None = None
        self.out_file = None if out_file is None else Path(out_file)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the features and labels of a batch.

        Args:
            data_batch: Not used.
            data_samples: Samples with ``feature`` ((D,) tensor), ``identity``, ``camera_id`` (-1 if
                unknown), ``subset`` and, if known, ``img_path``.

        Raises:
            KeyError: If a sample lacks an entry.
            ValueError: If a sample's subset or the shape of its feature is not what it must be.
        """
        for sample in data_samples:
            name = sample.get('img_path', '(no img_path)')
            for key in _REQUIRED:
                if key not in sample:
                    raise KeyError(_missing(key, name))
            if sample['subset'] not in _SUBSETS:
                raise ValueError(
                    f'{name} is of subset {sample["subset"]!r}; ReIDMetric takes {_SUBSETS}, so '
                    "give the test dataset subset='test'"
                )
            feature = sample['feature']
            if feature.ndim != 1:
                raise ValueError(
                    f'the feature of {name} must have the shape (D,), not {tuple(feature.shape)}'
                )
            self.results.append(
                {
                    # A copy, and not a tensor: neither keeps nor sends the rest of the batch.
                    'feature': feature.detach().to('cpu', self.feature_dtype, copy=True).numpy(),
                    'identity': int(sample['identity']),
                    'camera_id': int(sample['camera_id']),
                    'subset': sample['subset'],
                    'img_path': str(sample.get('img_path', '')),
                }
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Metrics of all samples, in percent.

        Raises:
            ValueError: If there are no query or no gallery images, if camera ids are known for some
                images only, or for what :func:`evaluate_ranking` rejects.
        """
        query = _select(results, 'query')
        gallery = _select(results, 'gallery')
        labels = {
            'query_ids': query['ids'],
            'gallery_ids': gallery['ids'],
            'self_index': _find_self(query, gallery),
        }
        cross_camera = _cameras_known(results)
        if cross_camera:
            labels.update(query_cameras=query['cameras'], gallery_cameras=gallery['cameras'])
        if self.out_file is not None:
            _save(self.out_file, query, gallery)

        features = [torch.from_numpy(x['features']).to(self.device) for x in (query, gallery)]
        common = {'topk': self.topk, 'max_memory_mb': self.max_memory_mb, 'progress': True}
        plain = evaluate_ranking(
            *features, **labels, metric=self.metric, return_per_query=True, **common
        )
        self._report(query, gallery, plain['num_valid_queries'], cross_camera)
        distances = None
        names = ['mAP', 'mINP', *(f'CMC@{k}' for k in self.topk)]
        metrics = {name: 100 * plain[name] for name in names}
        if self.rerank is not None:
            distances = k_reciprocal_rerank(
                *features,
                **self.rerank,
                metric=self.metric,
                max_memory_mb=self.max_memory_mb,
                progress=True,
            )
            reranked = evaluate_distances(distances, **labels, return_per_query=True, **common)
            metrics.update({f'rerank_{name}': 100 * reranked[name] for name in names})
        if self.num_ranked:
            options = {'k': self.num_ranked, 'drop_junk': True}
            options['max_memory_mb'] = self.max_memory_mb
            if distances is None:
                lists = topk_ranking(*features, **labels, metric=self.metric, **options)
            else:
                lists = topk_distances(distances, **labels, **options)
            scored = plain if distances is None else reranked
            self.ranking = Ranking(lists, query, gallery, scored['AP'])
        return metrics

    def _report(self, query: dict, gallery: dict, num_valid: int, cross_camera: bool) -> None:
        """Log what was evaluated: a wrong protocol shows here first."""
        logger = MMLogger.get_current_instance()
        protocol = 'cross-camera' if cross_camera else 'no camera ids, only the query left out'
        logger.info(
            f'{len(query["ids"])} queries of {len(set(query["ids"]))} identities, '
            f'{len(gallery["ids"])} gallery images of {len(set(gallery["ids"]))} identities; '
            f'protocol: {protocol}'
        )
        skipped = len(query['ids']) - num_valid
        if skipped:
            logger.warning(f'{skipped} queries have no positive in the gallery and are left out')


def _missing(key: str, name: str) -> str:
    remedy = {
        'feature': 'the model must set it in predict mode, as ReIdentifier does',
    }.get(key, 'the dataset must give it and PackReIDInputs must pack it')
    return f'{name} has no entry {key!r}: {remedy}'


def _select(results: list[dict], subset: str) -> dict[str, np.ndarray]:
    """Features and labels of the query or the gallery."""
    positions = [i for i, x in enumerate(results) if x['subset'] in (subset, 'both')]
    chosen = [results[i] for i in positions]
    if not chosen:
        found = sorted({x['subset'] for x in results})
        raise ValueError(
            f'no {subset} images among {len(results)} samples (subsets found: {found}): give the '
            "test dataset subset='test', which is query and gallery in one pass"
        )
    dims = sorted({x['feature'].shape for x in chosen})
    if len(dims) > 1:
        raise ValueError(f'features of the {subset} differ in shape: {dims}')
    return {
        'features': np.stack([x['feature'] for x in chosen]),
        'ids': np.array([x['identity'] for x in chosen]),
        'cameras': np.array([x['camera_id'] for x in chosen]),
        'paths': np.array([x['img_path'] for x in chosen]),
        'positions': np.array(positions),
    }


def _find_self(query: dict, gallery: dict) -> np.ndarray:
    """Where a query image lies in the gallery, -1 if it doesn't.

    The same sample (subset ``'both'``), or a sample of the same path and identity.
    """
    by_position = {int(p): i for i, p in enumerate(gallery['positions'])}
    by_path = {
        (path, identity): i
        for i, (path, identity) in enumerate(zip(gallery['paths'], gallery['ids']))
        if path
    }
    return np.array(
        [
            by_position.get(int(position), by_path.get((path, identity), -1))
            for position, path, identity in zip(query['positions'], query['paths'], query['ids'])
        ]
    )


def _cameras_known(results: list[dict]) -> bool:
    """Whether camera ids are known, for all samples or for none."""
    unknown = [x for x in results if x['camera_id'] == -1]
    if unknown and len(unknown) < len(results):
        raise ValueError(
            f'{len(unknown)} of {len(results)} images have no camera id (-1), the first is '
            f'{unknown[0]["img_path"]!r}: give all images one for the cross-camera protocol, or '
            'none for the plain one'
        )
    return not unknown


def _save(out_file: Path, query: dict, gallery: dict) -> None:
    out_file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        f'{name}_{key}': part[key]
        for name, part in (('query', query), ('gallery', gallery))
        for key in ('features', 'ids', 'cameras', 'paths')
    }
    np.savez(out_file, **arrays)
