import pytest
import torch

from vitdown.evaluation.functional.similarity import FeatureScores, full_precision

from .definition import pair_scores
from .test_ranking import random_set, split


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_all_ways_to_a_score_agree(metric):
    features, _ = split(random_set(0))
    scores = FeatureScores(*features, metric)
    assert scores.shape == (12, 90)
    exact = scores.rows_float64(3, 9)
    rows = scores.rows(3, 9)
    assert (rows.dtype, exact.dtype) == (torch.float32, torch.float64)
    error = (rows.double() - exact).abs()
    assert (error <= scores.tolerance[3:9, None] / 2).all()
    query, gallery = torch.tensor([3, 8, 5]), torch.tensor([0, 89, 44])
    pairs = scores.pairs(query, gallery)
    assert ((pairs - exact[query - 3, gallery]).abs() <= scores.tie[query]).all()


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_readable_scores(metric):
    features, _ = split(random_set(1))
    scores = FeatureScores(*features, metric)
    wanted = torch.from_numpy(pair_scores(*features, metric))
    if metric == 'euclidean':
        wanted = -(-wanted).sqrt()
    readable = scores.readable(scores.rows_float64(0, 12))
    torch.testing.assert_close(readable, wanted, atol=1e-6, rtol=0)


def test_full_precision_restores_the_setting():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('high')
    try:
        with full_precision(torch.device('cpu')):
            assert torch.get_float32_matmul_precision() == 'highest'
        assert torch.get_float32_matmul_precision() == 'high'
    finally:
        torch.set_float32_matmul_precision(before)
