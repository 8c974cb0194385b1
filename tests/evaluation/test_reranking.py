import numpy as np
import pytest
import torch

from vitdown.evaluation.functional import (
    evaluate_distances,
    evaluate_ranking,
    k_reciprocal_rerank,
)

from .test_ranking import random_set, split


def dense_rerank(query, gallery, k1, k2, lambda_value):
    """Re-ranking by its definition: whole matrices, sets, loops, float64."""
    points = np.concatenate([query, gallery]).astype(np.float64)
    total = len(points)
    distances = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    distances /= distances.max(axis=1, keepdims=True)
    order = np.argsort(distances, axis=1, kind='stable')

    def reciprocal(i, k):
        return {j for j in order[i, : k + 1] if i in order[j, : k + 1]}

    weights = np.zeros((total, total))
    for i in range(total):
        near = reciprocal(i, k1)
        members = set(near)
        for j in near:
            nearer = reciprocal(j, round(k1 / 2))
            if 3 * len(nearer & near) > 2 * len(nearer):
                members |= nearer
        members = sorted(members)
        weights[i, members] = np.exp(-distances[i, members])
        # Duplicates that come late are not even among their own neighbours.
        weights[i] /= weights[i].sum() if members else 1
    if k2 > 1:
        weights = np.stack([weights[order[i, :k2]].mean(axis=0) for i in range(total)])
    num_query = len(query)
    shared = np.minimum(weights[:num_query, None], weights[None, num_query:]).sum(axis=2)
    jaccard = 1 - shared / (2 - shared)
    return (1 - lambda_value) * jaccard + lambda_value * distances[:num_query, num_query:]


def clusters(seed, num_query=15, num_gallery=70, dims=12, noise=0.5):
    """Queries and gallery around the centres of seven identities."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(7, dims))
    ids = np.concatenate([np.arange(num_query) % 7, np.arange(num_gallery) % 7])
    features = centres[ids] + noise * generator.normal(size=(len(ids), dims))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    features = features.astype(np.float32)
    return features[:num_query], features[num_query:], ids[:num_query], ids[num_query:]


@pytest.mark.parametrize(
    ('k1', 'k2', 'lambda_value'),
    [(20, 6, 0.3), (7, 3, 0.0), (5, 1, 1.0), (13, 20, 0.5), (1, 1, 0.3), (300, 200, 0.3)],
)
@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_equals_definition(k1, k2, lambda_value, metric):
    query, gallery, *_ = clusters(k1)
    result = k_reciprocal_rerank(query, gallery, k1, k2, lambda_value, metric)
    assert result.shape == (15, 70)
    wanted = dense_rerank(query, gallery, k1, k2, lambda_value)
    np.testing.assert_allclose(result.dense(), wanted, atol=2e-6)


def test_cosine_normalises_and_euclidean_does_not():
    query, gallery, *_ = clusters(0)
    scale = np.linspace(0.5, 3, 70, dtype=np.float32)[:, None]
    unit = k_reciprocal_rerank(query, gallery)
    scaled = k_reciprocal_rerank(query, gallery * scale)
    torch.testing.assert_close(scaled.dense(), unit.dense(), atol=2e-6, rtol=0)
    euclidean = k_reciprocal_rerank(query, gallery * scale, metric='euclidean')
    wanted = dense_rerank(query, gallery * scale, 20, 6, 0.3)
    np.testing.assert_allclose(euclidean.dense(), wanted, atol=5e-6)


def test_duplicates_keep_their_order():
    query, gallery, *_ = clusters(1)
    gallery = gallery[np.arange(70) // 3]
    result = k_reciprocal_rerank(query, gallery, k1=7, k2=4, metric='euclidean')
    np.testing.assert_allclose(result.dense(), dense_rerank(query, gallery, 7, 4, 0.3), atol=2e-6)


@pytest.mark.parametrize('places', [2, 3])
@pytest.mark.parametrize('k2', [1, 3])
@pytest.mark.parametrize('max_memory_mb', [0.01, 512])
def test_order_of_many_duplicates(places, k2, max_memory_mb):
    # Far more images at one distance than neighbours, at each of a few places.
    generator = np.random.default_rng(0)
    points = generator.normal(size=(places, 40))[generator.integers(0, places, 210)]
    query, gallery = np.split(points.astype(np.float32), [40])
    options = {'metric': 'euclidean', 'max_memory_mb': max_memory_mb}
    result = k_reciprocal_rerank(query, gallery, k1=5, k2=k2, **options)
    wanted = dense_rerank(query, gallery, 5, k2, 0.3)
    assert np.isfinite(wanted).all()
    np.testing.assert_allclose(result.dense(), wanted, atol=2e-6)


def test_equal_features_do_not_divide_by_zero():
    features = torch.ones(30, 4)
    result = k_reciprocal_rerank(features[:10], features[10:], k1=5, k2=3)
    assert torch.isfinite(result.dense()).all()


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('scale', [1e-25, 1e20, 1e36])
def test_scale_of_features_does_not_matter(metric, scale):
    features = clusters(8)[:2]
    wanted = k_reciprocal_rerank(*features, metric=metric).dense()
    scaled = [x * np.float32(scale) for x in features]
    result = k_reciprocal_rerank(*scaled, metric=metric).dense()
    torch.testing.assert_close(result, wanted, atol=1e-6, rtol=0)


def test_rows_are_computed_in_any_block():
    query, gallery, *_ = clusters(2)
    result = k_reciprocal_rerank(query, gallery, k1=10, k2=4)
    dense = result.dense()
    assert dense.dtype == torch.float32
    parts = torch.cat([result[:4], result[4:5], result[5:]])
    torch.testing.assert_close(parts, dense, atol=1e-6, rtol=0)
    assert result[3:3].shape == (0, 70)
    with pytest.raises(TypeError, match='slice of queries, not 3'):
        result[3]
    with pytest.raises(ValueError, match='consecutive; the step is 2'):
        result[::2]


def test_memory_bound_does_not_change_results():
    query, gallery, *_ = clusters(3)
    wanted = k_reciprocal_rerank(query, gallery).dense()
    result = k_reciprocal_rerank(query, gallery, max_memory_mb=0.02).dense()
    torch.testing.assert_close(result, wanted, atol=1e-6, rtol=0)


def test_is_sparse():
    query, gallery, *_ = clusters(4, num_query=100, num_gallery=900, noise=1.0)
    weights = k_reciprocal_rerank(query, gallery, k1=5, k2=2).weights
    assert weights.nnz < 40 * 1000
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)


def test_raises_map_on_clusters():
    query, gallery, query_ids, gallery_ids = clusters(5, num_gallery=210, noise=1.0)
    before = evaluate_ranking(query, gallery, query_ids, gallery_ids)
    after = evaluate_distances(k_reciprocal_rerank(query, gallery), query_ids, gallery_ids)
    assert 0.3 < before['mAP'] < 0.9
    assert after['mAP'] > before['mAP'] + 0.05


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_accepts_any_floating_point_type(dtype):
    features = [torch.from_numpy(x).to(dtype) for x in clusters(6)[:2]]
    result = k_reciprocal_rerank(*features, metric='euclidean')
    wanted = dense_rerank(*(x.double().numpy() for x in features), 20, 6, 0.3)
    np.testing.assert_allclose(result.dense(), wanted, atol=5e-6)


def test_autocast_does_not_matter():
    query, gallery, *_ = clusters(7)
    wanted = k_reciprocal_rerank(query, gallery).dense()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(k_reciprocal_rerank(query, gallery).dense(), wanted)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'k1': 0}, 'k1 must be an integer of at least 1, not 0'),
        ({'k2': 2.5}, 'k2 must be an integer'),
        ({'lambda_value': 1.2}, 'lambda_value must be between 0 and 1, not 1.2'),
        ({'metric': 'l1'}, 'metric must be one of'),
        ({'max_memory_mb': 1e-5}, 'max_memory_mb'),
        ({'gallery_features': np.ones((3, 5), 'f')}, 'dimensions'),
        ({'query_features': np.full((3, 16), np.nan, 'f')}, '3 of 3 rows'),
    ],
)
def test_says_what_is_wrong(options, message):
    query, gallery = split(random_set(0))[0]
    arguments = {'query_features': query, 'gallery_features': gallery, **options}
    with pytest.raises(ValueError, match=message):
        k_reciprocal_rerank(**arguments)
