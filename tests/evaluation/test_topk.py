import numpy as np
import pytest
import torch

from vitdown.evaluation.functional import k_reciprocal_rerank, topk_distances, topk_ranking

from .definition import pair_scores
from .test_ranking import random_set, split


def argsort_lists(scores, k):
    return np.argsort(-scores, axis=1, kind='stable')[:, :k]


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('k', [1, 7, 90, 500])
def test_lists_the_nearest(metric, k):
    data = random_set(0)
    result = topk_ranking(data['query_features'], data['gallery_features'], metric=metric, k=k)
    scores = pair_scores(data['query_features'], data['gallery_features'], metric)
    if metric == 'euclidean':
        scores = -np.sqrt(-scores)
    wanted = argsort_lists(scores, k)
    assert result.indices.shape == (12, min(k, 90))
    np.testing.assert_array_equal(result.indices, wanted)
    np.testing.assert_allclose(result.scores, np.take_along_axis(scores, wanted, 1), atol=1e-5)
    assert result.matches is None
    assert result.junk is None


def test_equal_scores_come_in_gallery_order():
    gallery = torch.tensor([[0.0, 1], [1, 0], [0, 1], [1, 0], [0, 1], [1, 0]])
    result = topk_ranking(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), gallery, k=4)
    assert result.indices.tolist() == [[0, 2, 4, 1], [0, 1, 2, 3]]


def test_flags_matches_and_junk():
    data = random_set(1)
    features, labels = split(data)
    result = topk_ranking(*features, **labels, k=90)
    match = data['gallery_ids'][result.indices] == data['query_ids'][:, None]
    same_camera = data['gallery_cameras'][result.indices] == data['query_cameras'][:, None]
    np.testing.assert_array_equal(result.matches, match)
    np.testing.assert_array_equal(result.junk, match & same_camera)


def test_drops_junk():
    data = random_set(2)
    features, labels = split(data)
    flagged = topk_ranking(*features, **labels, k=90)
    dropped = topk_ranking(*features, **labels, k=90, drop_junk=True)
    assert not dropped.junk.any()
    for i in range(12):
        kept = ~flagged.junk[i]
        count = int(kept.sum())
        assert dropped.indices[i, :count].tolist() == flagged.indices[i][kept].tolist()
        assert dropped.matches[i, :count].tolist() == flagged.matches[i][kept].tolist()
        # The list ends early.
        assert (dropped.indices[i, count:] == -1).all()
        assert (dropped.scores[i, count:] == -torch.inf).all()
        assert not dropped.matches[i, count:].any()


def test_leaves_the_query_itself_out():
    features = random_set(3)['query_features']
    own = np.arange(12)
    result = topk_ranking(features, features, own, own, self_index=own, k=3, drop_junk=True)
    assert not (result.indices == torch.arange(12)[:, None]).any()


def test_memory_bound_does_not_change_results():
    data = random_set(4)
    features, labels = split(data)
    wanted = topk_ranking(*features, **labels)
    result = topk_ranking(*features, **labels, max_memory_mb=0.01)
    assert torch.equal(result.indices, wanted.indices)
    assert torch.equal(result.junk, wanted.junk)


def test_lists_from_distances():
    data = random_set(5)
    features, labels = split(data)
    distances = k_reciprocal_rerank(*features, k1=8, k2=3)
    result = topk_distances(distances, **labels, k=5)
    np.testing.assert_array_equal(result.indices, argsort_lists(-distances.dense().numpy(), 5))
    assert torch.equal(result.scores, -distances.dense().gather(1, result.indices))
    match = data['gallery_ids'][result.indices] == data['query_ids'][:, None]
    np.testing.assert_array_equal(result.matches, match)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'k': 0}, 'k must be an integer of at least 1'),
        ({'query_ids': range(12)}, 'query_ids and gallery_ids must be given together'),
        ({'drop_junk': True}, 'needs query_ids'),
        ({'query_cameras': range(12)}, 'needs query_ids'),
        ({'self_index': range(12)}, 'needs query_ids'),
        ({'max_memory_mb': 1e-4}, 'max_memory_mb=0.0001'),
        ({'metric': 'l1'}, 'metric must be one of'),
    ],
)
def test_says_what_is_wrong(options, message):
    features, _ = split(random_set(6))
    with pytest.raises(ValueError, match=message):
        topk_ranking(*features, **options)
