"""Re-identification metrics: mAP, mINP and CMC of a test set's ranking lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import (
    broadcast_object_list,
    collect_results,
    get_default_group,
    is_distributed,
    is_main_process,
)
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from vitdown.evaluation.evaluate import Evaluation, EvaluationOptions, evaluate_feature_sets
from vitdown.evaluation.feature_set import FeatureSet, find_same_images, save_feature_sets
from vitdown.evaluation.functional import RankingList
from vitdown.evaluation.functional.sharing import Group
from vitdown.registry import METRICS

_SUBSETS = ('query', 'gallery', 'both')
_REQUIRED = ('feature', 'identity', 'camera_id', 'subset')


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

    Reported are ``mAP``, ``mINP`` and ``CMC@k``; with query expansion and with re-ranking (of the
    features as they are) the same once more as ``qe_mAP``, ``rerank_mAP`` and so on; for protocols
    that draw the gallery several times, means, and standard deviations as ``mAP_std``.

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
            :attr:`ranking` (of the re-ranked lists, if there are any, or after query expansion).
        out_file: Save features, labels and image paths of query and gallery to this ``.npz`` file.
        collect_device: How features of several processes are brought together, ``'cpu'`` or
            ``'gpu'``.
        prefix: Prefix of the metrics' names.
        protocol: ``'auto'`` as described above, ``'cross-camera'`` (requires camera ids),
            ``'plain'`` (ignores them), or one that draws the gallery at random:
            ``'single-gallery-shot'`` or ``'vehicleid'``. See
            :class:`~vitdown.evaluation.evaluate.EvaluationOptions`, as for the options below.
        query_expansion: True to evaluate the lists of expanded queries too, or a dict of the
            options ``k`` and ``alpha``.
        tpr_at_fpr: False positive rates at which to report the true positive rate of pairs, e.g.
            ``(1e-4, 1e-3)``, as ``TPR@FPR=0.001``.
        repeats: Number of draws of the gallery.
        seed: Seed of the draws.

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
        protocol: str = 'auto',
        query_expansion: bool | dict[str, Any] = False,
        tpr_at_fpr: Sequence[float] = (),
        repeats: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if feature_dtype not in ('float32', 'float16'):
            raise ValueError(f"feature_dtype must be 'float32' or 'float16', not {feature_dtype!r}")
        if out_file is not None and Path(out_file).suffix != '.npz':
            raise ValueError(f'out_file must end in .npz: {str(out_file)!r}')
        self.options = EvaluationOptions(
            metric=metric,
            topk=topk,
            protocol=protocol,
            rerank=rerank,
            query_expansion=query_expansion,
            tpr_at_fpr=tpr_at_fpr,
            repeats=repeats,
            seed=seed,
            max_memory_mb=max_memory_mb,
            device=device,
        )
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

    def evaluate(self, size: int) -> dict[str, float]:
        """Metrics of the whole test set, in percent; the same on every process.

        With several processes, features are brought together once, and each ranks its share of the
        queries.

        Args:
            size: Length of the test set; what pads the last batches is dropped.

        Raises:
            ValueError: See :meth:`compute_metrics`; on every process.
        """
        if not is_distributed():
            return super().evaluate(size)
        results = collect_results(self.results, size, self.collect_device)
        self.results.clear()
        outcome: list = [None]
        if is_main_process():
            try:
                outcome = [_as_sets(results)]
            except ValueError as error:
                outcome = [error]
        # An error, too: else the other processes would wait forever.
        broadcast_object_list(outcome)
        if isinstance(outcome[0], ValueError):
            raise outcome[0]
        query, gallery, positions = outcome[0]
        metrics = self._evaluate(query, gallery, positions, get_default_group())
        prefix = f'{self.prefix}/' if self.prefix else ''
        return {prefix + name: value for name, value in metrics.items()}

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Metrics of all samples, in percent.

        Raises:
            ValueError: If there are no query or no gallery images, if camera ids are known for some
                images only, or for what :func:`evaluate_ranking` rejects.
        """
        return self._evaluate(*_as_sets(results))

    def _evaluate(
        self, query: FeatureSet, gallery: FeatureSet, positions: _Positions, group: Group = None
    ) -> dict[str, float]:
        if self.out_file is not None and is_main_process():
            save_feature_sets(self.out_file, query, gallery)
        own = _find_self(query, positions.query, gallery, positions.gallery)
        evaluation = evaluate_feature_sets(query, gallery, self.options, own, group)
        self._report(query, gallery, evaluation)
        if self.num_ranked:
            lists, average_precision = evaluation.ranking_lists(self.num_ranked)
            self.ranking = Ranking(
                lists,
                _labels(query, positions.query),
                _labels(gallery, positions.gallery),
                average_precision,
            )
        return {name: 100 * value for name, value in evaluation.metrics.items()}

    def _report(self, query: FeatureSet, gallery: FeatureSet, evaluation: Evaluation) -> None:
        """Log what was evaluated: a wrong protocol shows here first."""
        logger = MMLogger.get_current_instance()
        logger.info(
            f'{len(query)} queries of {len(set(query.ids))} identities, {len(gallery)} gallery '
            f'images of {len(set(gallery.ids))} identities; protocol: {evaluation.protocol}'
        )
        skipped = len(evaluation.query) - evaluation.num_valid_queries
        if skipped:
            logger.warning(f'{skipped} queries have no positive in the gallery and are left out')


def _missing(key: str, name: str) -> str:
    remedy = {
        'feature': 'the model must set it in predict mode, as ReIdentifier does',
    }.get(key, 'the dataset must give it and PackReIDInputs must pack it')
    return f'{name} has no entry {key!r}: {remedy}'


class _Positions(NamedTuple):
    """Indices of the query and of the gallery images in the test set."""

    query: np.ndarray
    gallery: np.ndarray


def _as_sets(results: list[dict]) -> tuple[FeatureSet, FeatureSet, _Positions]:
    query, query_positions = _select(results, 'query')
    gallery, gallery_positions = _select(results, 'gallery')
    return query, gallery, _Positions(query_positions, gallery_positions)


def _select(results: list[dict], subset: str) -> tuple[FeatureSet, np.ndarray]:
    """Features and labels of the query or the gallery, and their positions in the test set."""
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
    selected = FeatureSet(
        np.stack([x['feature'] for x in chosen]),
        np.array([x['identity'] for x in chosen]),
        np.array([x['camera_id'] for x in chosen]),
        np.array([x['img_path'] for x in chosen]),
    )
    return selected, np.array(positions)


def _find_self(
    query: FeatureSet,
    query_positions: np.ndarray,
    gallery: FeatureSet,
    gallery_positions: np.ndarray,
) -> np.ndarray:
    """Where a query image lies in the gallery, -1 if it doesn't.

    The same sample (subset ``'both'``), or a sample of the same path and identity.
    """
    by_position = {int(position): i for i, position in enumerate(gallery_positions)}
    same_sample = np.array([by_position.get(int(position), -1) for position in query_positions])
    return np.where(same_sample >= 0, same_sample, find_same_images(query, gallery))


def _labels(part: FeatureSet, positions: np.ndarray) -> dict[str, np.ndarray]:
    return {
        'ids': part.ids,
        'cameras': part.cameras,
        'paths': part.paths,
        'positions': positions,
    }
