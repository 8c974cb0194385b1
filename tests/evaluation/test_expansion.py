import numpy as np
import pytest
import torch

from vitdown.evaluation.functional import evaluate_ranking, query_expansion

from .test_ranking import random_set


def by_definition(query, gallery, k, alpha, own=None):
    """One query and one neighbour at a time, in float64."""
    query, gallery = np.asarray(query, np.float64), np.asarray(gallery, np.float64)
    query = query / np.linalg.norm(query, axis=1, keepdims=True)
    gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    expanded = []
    for i, q in enumerate(query):
        cosines = gallery @ q
        nearest = [j for j in np.argsort(-cosines) if own is None or own[i] != j][:k]
        total = q.copy()
        for j in nearest:
            total += max(cosines[j], 0) ** alpha * gallery[j] if alpha else gallery[j]
        expanded.append(total / np.linalg.norm(total))
    return np.array(expanded)


def features_of(seed, **options):
    data = random_set(seed, **options)
    return data['query_features'], data['gallery_features']


@pytest.mark.parametrize('alpha', [0.0, 1.0, 3.0])
@pytest.mark.parametrize('k', [1, 10, 500])
def test_equals_definition(k, alpha):
    features = features_of(0)
    result = query_expansion(*features, k=k, alpha=alpha)
    assert result.shape == (12, 16)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result, by_definition(*features, k, alpha), atol=2e-6)


@pytest.mark.parametrize('k', [3, 40])
@pytest.mark.parametrize('alpha', [0.0, 3.0])
def test_gallery_expanded_by_itself(k, alpha):
    gallery = features_of(1, num_gallery=40)[1]
    # The last two are not in the set they are expanded by.
    own = np.r_[np.arange(38), -1, -1]
    result = query_expansion(gallery, gallery[:38], k=k, alpha=alpha, self_index=own)
    np.testing.assert_allclose(
        result, by_definition(gallery, gallery[:38], k, alpha, own), atol=2e-6
    )


def test_euclidean_takes_features_as_they_are():
    query, gallery = features_of(2)
    result = query_expansion(query, gallery, k=4, metric='euclidean')
    distances = np.linalg.norm(query[:, None] - gallery, axis=2)
    nearest = gallery[np.argsort(distances, axis=1)[:, :4]]
    wanted = np.concatenate([query[:, None], nearest], axis=1).mean(axis=1)
    np.testing.assert_allclose(result, wanted, atol=1e-6)


def test_keeps_the_input_and_its_precision():
    query, gallery = (torch.from_numpy(x).double() for x in features_of(3))
    before = query.clone()
    assert query_expansion(query, gallery).dtype == torch.float64
    assert torch.equal(query, before)
    half = query_expansion(query.half(), gallery.half(), k=2)
    assert half.dtype == torch.float32


def test_memory_bound_does_not_change_results():
    features = features_of(4, num_query=60)
    wanted = query_expansion(*features, alpha=3)
    torch.testing.assert_close(query_expansion(*features, alpha=3, max_memory_mb=4e-3), wanted)


def test_helps_where_identities_form_clusters():
    generator = np.random.default_rng(5)
    centres = generator.normal(size=(8, 32))
    ids = np.repeat(np.arange(8), 12)
    gallery = (centres[ids] + generator.normal(size=(96, 32))).astype(np.float32)
    query = (centres + 1.2 * generator.normal(size=(8, 32))).astype(np.float32)
    before = evaluate_ranking(query, gallery, np.arange(8), ids)['mAP']
    expanded = query_expansion(query, gallery, k=5)
    assert evaluate_ranking(expanded, gallery, np.arange(8), ids)['mAP'] > before


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'k': 0}, 'k must be an integer of at least 1'),
        ({'alpha': -1}, 'alpha must be a number of at least 0, not -1'),
        ({'alpha': 3.0, 'metric': 'euclidean'}, "use metric='cosine' or alpha=0"),
        ({'metric': 'l1'}, 'metric must be one of'),
        ({'self_index': [90] * 12}, 'self_index of query 0 is 90, outside the gallery of 90'),
        ({'self_index': [0]}, 'self_index must hold one label for each of the 12'),
        ({'max_memory_mb': 1e-4}, 'max_memory_mb=0.0001'),
    ],
)
def test_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        query_expansion(*features_of(6), **options)
