"""Several gloo processes, each of which ranks its share of the queries, against one."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.dist import get_default_group
from mmengine.evaluator import Evaluator

from vitdown.evaluation import functional
from vitdown.evaluation.functional import evaluate_ranking, k_reciprocal_rerank

from .test_ranking import random_set
from .test_reid_metric import samples_of

OPTIONS = {
    'type': 'vitdown.ReIDMetric',
    'topk': (1, 5),
    'rerank': {'k1': 6, 'k2': 2},
    'query_expansion': True,
    'tpr_at_fpr': (0.1,),
    'num_ranked': 3,
}


def evaluate(samples, size):
    evaluator = Evaluator([OPTIONS])
    evaluator.process(data_samples=samples)
    return evaluator.evaluate(size), evaluator.metrics[0].ranking


def run_rank(rank, world_size, port, folder):
    torch.set_num_threads(1)
    address = f'tcp://127.0.0.1:{port}'
    dist.init_process_group('gloo', init_method=address, rank=rank, world_size=world_size)
    ranked = []
    rows = functional.ranking.FeatureScores.rows

    def spy(scores, start, stop):
        ranked.extend(range(start, stop))
        return rows(scores, start, stop)

    data = random_set(0)
    functional.ranking.FeatureScores.rows = spy
    direct = evaluate_ranking(**data, return_per_query=True, group=get_default_group())
    functional.ranking.FeatureScores.rows = rows
    distances = k_reciprocal_rerank(
        data['query_features'],
        data['gallery_features'],
        k1=6,
        k2=2,
        group=get_default_group(),
    ).dense()
    # As MMEngine's sampler does it: turn by turn, padded with the first samples.
    samples = samples_of(data)
    padded = samples + samples[: -len(samples) % world_size]
    metrics, ranking = evaluate(padded[rank::world_size], len(samples))
    torch.save(
        [ranked, direct, distances, metrics, ranking.lists.indices],
        f'{folder}/{rank}.pth',
    )
    dist.destroy_process_group()


@pytest.mark.parametrize('world_size', [2, 3])
def test_same_result_on_every_process(tmp_path, world_size):
    from tests.engine.test_distributed import free_port

    mp.spawn(run_rank, (world_size, free_port(), str(tmp_path)), nprocs=world_size)
    data = random_set(0)
    direct = evaluate_ranking(**data, return_per_query=True)
    features = data['query_features'], data['gallery_features']
    distances = k_reciprocal_rerank(*features, k1=6, k2=2).dense()
    samples = samples_of(data)
    metrics, ranking = evaluate(samples, len(samples))
    ranked = []
    for rank in range(world_size):
        own, *found = torch.load(tmp_path / f'{rank}.pth', weights_only=False)
        ranked += own
        for name, value in direct.items():
            np.testing.assert_array_equal(found[0][name], value, err_msg=name)
        torch.testing.assert_close(found[1], distances, rtol=0, atol=1e-6)
        assert found[2] == pytest.approx(metrics, rel=1e-9)
        assert torch.equal(found[3], ranking.lists.indices)
    # Each query by one process.
    assert sorted(ranked) == list(range(len(data['query_ids'])))


def reject_rank(rank, world_size, port, folder):
    address = f'tcp://127.0.0.1:{port}'
    dist.init_process_group('gloo', init_method=address, rank=rank, world_size=world_size)
    samples = [x for x in samples_of(random_set(0)) if x.subset == 'query']
    with pytest.raises(ValueError, match='no gallery images') as caught:
        evaluate(samples[rank::world_size], len(samples))
    torch.save(str(caught.value), f'{folder}/{rank}.pth')
    dist.destroy_process_group()


def test_data_without_a_gallery_are_refused_on_every_process(tmp_path):
    from tests.engine.test_distributed import free_port

    mp.spawn(reject_rank, (2, free_port(), str(tmp_path)), nprocs=2)
    messages = {torch.load(tmp_path / f'{rank}.pth') for rank in range(2)}
    assert len(messages) == 1
