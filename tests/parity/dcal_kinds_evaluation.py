"""Checks of the reference files of TransReID that concern evaluation and re-ranking."""

from collections.abc import Callable

import torch

from vitdown.evaluation.functional import (
    evaluate_distances,
    evaluate_ranking,
    k_reciprocal_rerank,
    topk_ranking,
)

from .golden import GoldenFile


def _labels(golden: GoldenFile, case: str) -> list:
    names = ('q_pids', 'g_pids', 'q_camids', 'g_camids')
    return [golden[f'{case}/{name}'] for name in names]


def _cmc(result: dict, max_rank: int) -> list[float]:
    return [result[f'CMC@{k}'] for k in range(1, max_rank + 1)]


def check_eval(golden: GoldenFile) -> None:
    """CMC and mAP from features, the same from distances, and the distances themselves."""
    for case, settings in golden.cases.items():
        query, gallery = golden.tensor(f'{case}/qf'), golden.tensor(f'{case}/gf')
        labels = _labels(golden, case)
        max_rank = settings['max_rank']
        topk = range(1, max_rank + 1)
        query = torch.nn.functional.normalize(query, dim=1)
        gallery = torch.nn.functional.normalize(gallery, dim=1)
        # A list of all gallery images holds the whole row of distances.
        ranking = topk_ranking(query, gallery, metric='euclidean', k=len(gallery))
        distances = torch.empty_like(ranking.scores)
        distances.scatter_(1, ranking.indices, ranking.scores.square())
        golden.compare(f'{case}/distmat', distances)
        for result in (
            evaluate_ranking(golden[f'{case}/qf'], golden[f'{case}/gf'], *labels, topk=topk),
            evaluate_ranking(query, gallery, *labels, metric='euclidean', topk=topk),
            evaluate_distances(distances, *labels, topk=topk),
        ):
            golden.compare(f'{case}/cmc', _cmc(result, max_rank))
            golden.compare(f'{case}/mAP', result['mAP'])


def check_rerank(golden: GoldenFile) -> None:
    """Re-ranked distances, and the metrics before and after."""
    for case, settings in golden.cases.items():
        query, gallery = golden.tensor(f'{case}/qf'), golden.tensor(f'{case}/gf')
        labels = _labels(golden, case)
        max_rank = golden.config['max_rank']
        topk = range(1, max_rank + 1)
        options = {name: settings[name] for name in ('k1', 'k2', 'lambda_value')}
        reranked = k_reciprocal_rerank(query, gallery, metric='euclidean', **options)
        golden.compare(f'{case}/final_dist', reranked.dense())
        before = evaluate_ranking(query, gallery, *labels, metric='euclidean', topk=topk)
        after = evaluate_distances(reranked, *labels, topk=topk)
        golden.compare(f'{case}/mAP_before', before['mAP'])
        golden.compare(f'{case}/mAP_after', after['mAP'])
        golden.compare(f'{case}/cmc_after', _cmc(after, max_rank))


KINDS: dict[str, Callable[[GoldenFile], None]] = {
    'transreid_eval': check_eval,
    'transreid_rerank': check_rerank,
}
