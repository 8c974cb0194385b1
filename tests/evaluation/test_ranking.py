import numpy as np
import pytest
import torch

from vitdown.evaluation.functional import evaluate_distances, evaluate_ranking
from vitdown.evaluation.functional import ranking as ranking_module

from .definition import metrics, pair_scores

TOPK = (1, 2, 5, 1000)


def random_set(seed, num_query=12, num_gallery=90, dims=16, num_ids=6, num_cameras=3):
    """Random features; identity 0 is a distractor, the last query has no positive."""
    generator = np.random.default_rng(seed)
    query_ids = generator.integers(1, num_ids, num_query)
    query_ids[-1] = num_ids + 7
    return {
        'query_features': generator.normal(size=(num_query, dims)).astype(np.float32),
        'gallery_features': generator.normal(size=(num_gallery, dims)).astype(np.float32),
        'query_ids': query_ids,
        'gallery_ids': generator.integers(0, num_ids, num_gallery),
        'query_cameras': generator.integers(0, num_cameras, num_query),
        'gallery_cameras': generator.integers(0, num_cameras, num_gallery),
    }


def split(data):
    labels = {key: value for key, value in data.items() if not key.endswith('features')}
    return (data['query_features'], data['gallery_features']), labels


def expected(data, metric, topk=TOPK):
    features, labels = split(data)
    return metrics(pair_scores(*features, metric), **labels, topk=topk)


def assert_same(actual, wanted):
    assert actual.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(actual[key], value, rtol=1e-12, err_msg=key)


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('cameras', [True, False])
def test_equals_definition(metric, seed, cameras):
    data = random_set(seed, num_query=6 + seed, num_gallery=60 + 17 * seed, dims=3 + 9 * seed)
    if not cameras:
        del data['query_cameras'], data['gallery_cameras']
    result = evaluate_ranking(**data, metric=metric, topk=TOPK, return_per_query=True)
    assert_same(result, expected(data, metric))


def test_hand_made_list():
    # Query of identity 1, camera 0. By falling similarity: junk, negative, positive, distractor,
    # positive: positives at ranks 2 and 4 of what remains.
    gallery = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.4], [1.0, 0.5]])
    result = evaluate_ranking(
        torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        gallery,
        [1, 5],
        [1, 2, 1, 0, 1],
        [0, 0],
        [0, 1, 1, 2, 2],
        topk=(1, 2),
        return_per_query=True,
    )
    assert result['mAP'] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert result['mINP'] == pytest.approx(2 / 4)
    assert (result['CMC@1'], result['CMC@2']) == (0.0, 1.0)
    assert result['first_hit_rank'].tolist() == [2, 0]
    assert result['num_valid_queries'] == 1
    assert np.isnan(result['AP'][1])
    assert np.isnan(result['INP'][1])


def test_reports_fractions_as_floats():
    result = evaluate_ranking(**random_set(0))
    assert list(result) == ['mAP', 'mINP', 'CMC@1', 'CMC@5', 'CMC@10']
    assert all(type(value) is float and 0 <= value <= 1 for value in result.values())


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_ties_rank_negatives_first(metric):
    data = random_set(3, num_query=10, num_gallery=200, dims=5)
    generator = np.random.default_rng(9)
    # Eight distinct directions with exact arithmetic: nearly every positive ties with negatives.
    prototypes = np.array([[a, b, c, 0, 0] for a in (1, -1) for b in (0, 2) for c in (0, 2)])
    for key in ('query_features', 'gallery_features'):
        data[key] = prototypes[generator.integers(0, 8, len(data[key]))].astype(np.float32)
    result = evaluate_ranking(**data, metric=metric, topk=TOPK, return_per_query=True)
    assert_same(result, expected(data, metric))


@pytest.mark.parametrize('dims', [3, 8, 100, 384])
@pytest.mark.parametrize('num_gallery', [17, 100, 257])
@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_duplicates_tie_in_spite_of_rounding(dims, num_gallery, metric):
    # Products of equal columns may differ in the last bit, depending on where the column lies.
    data = random_set(dims, num_query=7, num_gallery=num_gallery, dims=dims)
    data['gallery_features'] = data['gallery_features'][np.arange(num_gallery) % 4]
    result = evaluate_ranking(**data, metric=metric, topk=TOPK, return_per_query=True)
    assert_same(result, expected(data, metric))


@pytest.mark.parametrize('value', [0.0, 0.3, -7.1])
@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_collapsed_model_scores_worst(value, metric):
    data = random_set(1, num_query=9, num_gallery=133, dims=384)
    for key in ('query_features', 'gallery_features'):
        data[key] = np.full_like(data[key], value)
    result = evaluate_ranking(**data, metric=metric, topk=TOPK, return_per_query=True)
    # Each positive comes after all negatives.
    for i, identity in enumerate(data['query_ids'][:-1]):
        same = data['gallery_ids'] == identity
        positives = (same & (data['gallery_cameras'] != data['query_cameras'][i])).sum()
        negatives = (~same).sum()
        assert result['first_hit_rank'][i] == negatives + 1
        assert result['INP'][i] == pytest.approx(positives / (negatives + positives))
    assert result['CMC@5'] == 0


def test_tied_positives_follow_one_another():
    features = torch.ones(1, 2), torch.tensor([[1.0, 1.0]] * 3 + [[0.0, 1.0]])
    result = evaluate_ranking(*features, [1], [1, 2, 1, 1], topk=(1,))
    # Negative, positive, positive, positive.
    assert result['mAP'] == pytest.approx((1 / 2 + 2 / 3 + 3 / 4) / 3)


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_settles_close_pairs_in_float64(metric):
    # One negative is nearer by 1e-9, one farther: float32 products can't tell.
    query = torch.tensor([[1.0, 0.0, 3.0]], dtype=torch.float64)
    gallery = torch.tensor([[1.0, 1.0, 3.0]], dtype=torch.float64).repeat(3, 1)
    gallery[:, 1] += torch.tensor([0.0, 1e-9, -1e-9])
    result = evaluate_ranking(query, gallery, [1], [1, 2, 3], metric=metric, return_per_query=True)
    assert result['first_hit_rank'].tolist() == [2]


def test_common_offset_does_not_cancel_distances():
    data = random_set(4)
    for key in ('query_features', 'gallery_features'):
        data[key] = (data[key].round(2) + 1000).astype(np.float32)
    result = evaluate_ranking(**data, metric='euclidean', topk=TOPK, return_per_query=True)
    assert_same(result, expected(data, 'euclidean'))


@pytest.mark.parametrize('scale', [1e-25, 1e25])
@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_scale_of_features_does_not_matter(metric, scale):
    data = random_set(5)
    wanted = evaluate_ranking(**data, metric=metric)
    for key in ('query_features', 'gallery_features'):
        data[key] = data[key] * np.float32(scale)
    assert evaluate_ranking(**data, metric=metric) == wanted


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('share', [0.0, 1.0])
def test_single_pairs_and_whole_blocks_settle_alike(metric, share, monkeypatch):
    data = random_set(6, num_gallery=120, dims=24)
    data['gallery_features'] = data['gallery_features'][np.arange(120) % 50]
    monkeypatch.setattr(ranking_module, '_MAX_SHARE_OF_PAIRS', share)
    monkeypatch.setattr(ranking_module, '_MAX_SEARCHES_PER_ROW', np.inf)
    result = evaluate_ranking(**data, metric=metric, topk=TOPK, return_per_query=True)
    assert_same(result, expected(data, metric))


@pytest.mark.parametrize('position', range(3))
def test_far_queries_do_not_overflow(position):
    query = torch.tensor([[1e30, 0.0]])
    gallery = torch.tensor([[-1e-12, 0.0], [1e-12, 0.0], [2e-12, 0.0]])
    ids = (np.arange(3) != position).astype(int)
    result = evaluate_ranking(query, gallery, [0], ids, metric='euclidean', return_per_query=True)
    assert result['first_hit_rank'].tolist() == [3 - position]


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_memory_bound_does_not_change_results(metric):
    data = random_set(7, num_query=40, num_gallery=300)
    wanted = evaluate_ranking(**data, metric=metric, return_per_query=True)
    # Room for one or two queries at a time, for a few, for all.
    for bound in (0.02, 0.05, 16):
        result = evaluate_ranking(**data, metric=metric, max_memory_mb=bound, return_per_query=True)
        assert_same(result, wanted)


@pytest.mark.parametrize('threads', [1, 3])
def test_threads_do_not_change_results(threads):
    data = random_set(8)
    wanted = expected(data, 'cosine')
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_same(
            evaluate_ranking(**data, topk=TOPK, return_per_query=True),
            wanted,
        )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_accepts_any_floating_point_type(dtype, metric):
    data = random_set(10)
    for key in ('query_features', 'gallery_features'):
        data[key] = torch.from_numpy(data[key]).to(dtype)
    result = evaluate_ranking(**data, metric=metric, topk=TOPK, return_per_query=True)
    for key in ('query_features', 'gallery_features'):
        data[key] = data[key].double().numpy()
    assert_same(result, expected(data, metric))


def test_autocast_and_gradients_do_not_matter():
    data = random_set(11)
    wanted = evaluate_ranking(**data)
    for key in ('query_features', 'gallery_features'):
        data[key] = torch.from_numpy(data[key]).requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert evaluate_ranking(**data) == wanted


def test_inputs_are_left_alone():
    data = random_set(12)
    before = {key: value.copy() for key, value in data.items()}
    evaluate_ranking(**data)
    distances = -pair_scores(data['query_features'], data['gallery_features'], 'cosine')
    kept = distances.copy()
    evaluate_distances(distances, **split(data)[1])
    for key, value in before.items():
        np.testing.assert_array_equal(data[key], value)
    np.testing.assert_array_equal(distances, kept)


def test_ids_may_be_large():
    big = 2**53
    features = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.1], [1.0, 0.2]])
    result = evaluate_ranking(*features, [big + 1], [big, big + 1], topk=(1, 2))
    assert (result['CMC@1'], result['CMC@2']) == (0.0, 1.0)


def test_query_set_as_gallery():
    data = random_set(13, num_query=30)
    features, ids, cameras = data['query_features'], data['query_ids'], data['query_cameras']
    scores = pair_scores(features, features, 'cosine')
    result = evaluate_ranking(
        features, features, ids, ids, self_index=np.arange(30), topk=TOPK, return_per_query=True
    )
    # Each image as if it had a camera of its own.
    own = np.arange(30)
    assert_same(result, metrics(scores, ids, ids, own, own, topk=TOPK))
    with_cameras = evaluate_ranking(
        features, features, ids, ids, cameras, cameras, topk=TOPK, return_per_query=True
    )
    assert_same(with_cameras, metrics(scores, ids, ids, cameras, cameras, topk=TOPK))


def test_distances_give_the_same_as_features():
    data = random_set(14)
    features, labels = split(data)
    scores = pair_scores(*features, 'cosine')
    wanted = expected(data, 'cosine')
    for distances in (1 - scores, torch.from_numpy(1 - scores)):
        result = evaluate_distances(distances, **labels, topk=TOPK, return_per_query=True)
        assert_same(result, wanted)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32', 'int64', 'uint8'])
@pytest.mark.parametrize('transposed', [True, False])
def test_accepts_distances_of_any_type_and_layout(dtype, transposed):
    data = random_set(18)
    features, labels = split(data)
    distances = (30 - 30 * torch.from_numpy(pair_scores(*features, 'cosine'))).round()
    wanted = metrics(-distances.numpy(), **labels, topk=TOPK)
    distances = distances.to(getattr(torch, dtype))
    if transposed:
        distances = distances.t().contiguous().t()
    result = evaluate_distances(distances, **labels, topk=TOPK, return_per_query=True)
    assert_same(result, wanted)


def test_distances_are_asked_for_in_blocks():
    data = random_set(15)
    features, labels = split(data)
    dense = 1 - pair_scores(*features, 'cosine')

    class Lazy:
        shape = dense.shape
        asked = []

        def __getitem__(self, rows):
            self.asked.append(rows)
            return torch.from_numpy(dense[rows])

    lazy = Lazy()
    result = evaluate_distances(lazy, **labels, topk=TOPK, max_memory_mb=0.01)
    asked = [row for rows in lazy.asked for row in range(rows.start, rows.stop)]
    assert asked == list(range(12))
    assert 2 < len(lazy.asked) < 12
    assert result['mAP'] == pytest.approx(expected(data, 'cosine')['mAP'], rel=1e-12)


def test_tied_distances_rank_negatives_first():
    result = evaluate_distances(torch.zeros(1, 4), [1], [1, 2, 3, 1], topk=(2, 3))
    assert (result['CMC@2'], result['CMC@3']) == (0.0, 1.0)


def with_value(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (lambda d: {'query_ids': d['query_ids'][:-1]}, ValueError, 'query_ids .* each of the 12'),
        (lambda d: {'gallery_ids': d['gallery_ids'][:, None]}, ValueError, 'gallery_ids'),
        (lambda d: {'gallery_cameras': [0]}, ValueError, 'gallery_cameras .* each of the 90'),
        (lambda d: {'query_ids': d['query_ids'] + 0.5}, TypeError, 'query_ids must be integers'),
        (lambda d: {'gallery_features': np.ones((90, 5), 'f')}, ValueError, '16 dim.* 5: they'),
        (lambda d: {'gallery_features': np.ones((0, 16), 'f')}, ValueError, 'gallery_.* is empty'),
        (lambda d: {'query_features': np.ones((0, 16), 'f')}, ValueError, 'query_.* is empty'),
        (lambda d: {'query_features': np.ones(16, 'f')}, ValueError, r'shape \(N, D\)'),
        (lambda d: {'query_features': np.ones((12, 16), int)}, TypeError, 'floating-point'),
        (lambda d: {'query_features': [[1.0]]}, TypeError, 'not list'),
        (
            lambda d: {
                'gallery_features': with_value(d['gallery_features'], (slice(4, 7), 2), np.nan)
            },
            ValueError,
            'gallery_features: 3 of 90 rows .* first is row 4',
        ),
        (
            lambda d: {'query_features': with_value(d['query_features'], (11, 0), np.inf)},
            ValueError,
            'query_features: 1 of 12 rows .* first is row 11',
        ),
        (lambda d: {'query_cameras': None}, ValueError, 'gallery_cameras .* without query_cameras'),
        (lambda d: {'gallery_cameras': None}, ValueError, 'query_.* without gallery_cameras'),
        (lambda d: {'gallery_ids': d['gallery_ids'] + 100}, ValueError, 'none of the 12 queries'),
        (lambda d: {'metric': 'dot'}, ValueError, "metric must be one of .* not 'dot'"),
        (lambda d: {'topk': ()}, ValueError, 'topk'),
        (lambda d: {'topk': 5}, ValueError, 'topk'),
        (lambda d: {'topk': (1, 0)}, ValueError, 'topk: each rank .* not 0'),
        (lambda d: {'topk': (1.5,)}, ValueError, 'topk: each rank .* not 1.5'),
        (lambda d: {'max_memory_mb': 1e-4}, ValueError, 'max_memory_mb=0.0001 .* at least 0.00'),
        (lambda d: {'self_index': [90] * 12}, ValueError, 'query 0 is 90, outside the gallery'),
        (lambda d: {'self_index': [-2] * 12}, ValueError, 'query 0 is -2, outside the gallery'),
        (lambda d: {'self_index': [0] * 12}, ValueError, 'points to a gallery image of identity'),
    ],
)
def test_says_what_is_wrong(change, error, message):
    data = random_set(16)
    data.update(change(data))
    with pytest.raises(error, match=message):
        evaluate_ranking(**data)


def test_rejects_features_on_two_devices():
    data = random_set(17)
    data['query_features'] = torch.from_numpy(data['query_features'])
    data['gallery_features'] = torch.empty(90, 16, device='meta')
    with pytest.raises(ValueError, match='query_features are on cpu and gallery_features on meta'):
        evaluate_ranking(**data)


def test_rejects_bad_distances():
    labels = [1, 2], [1, 2, 1]
    with pytest.raises(ValueError, match=r'shape \(Q, G\), not \(3,\)'):
        evaluate_distances(np.zeros(3), *labels)
    distances = np.zeros((2, 3))
    distances[1, 2] = np.nan
    with pytest.raises(ValueError, match='row 1 holds NaN or infinity'):
        evaluate_distances(distances, *labels)
    with pytest.raises(ValueError, match='gallery_ids .* each of the 3'):
        evaluate_distances(np.zeros((2, 3)), [1, 2], [1, 2])


@pytest.mark.parametrize('bound', [0, -1, float('nan'), '512', None, True])
def test_rejects_bad_memory_bounds(bound):
    with pytest.raises(ValueError, match='max_memory_mb must be a number above 0'):
        evaluate_ranking(**random_set(0), max_memory_mb=bound)


def test_memory_may_be_unbounded():
    data = random_set(0)
    assert evaluate_ranking(**data, max_memory_mb=float('inf')) == evaluate_ranking(**data)


def test_accepts_any_order_of_bytes_and_entries():
    data = random_set(19)
    wanted = evaluate_ranking(**data)
    features, labels = split(data)
    distances = 1 - pair_scores(*features, 'cosine')
    for change in (lambda x: x.astype(x.dtype.newbyteorder('>')), lambda x: x[::-1].copy()[::-1]):
        assert evaluate_ranking(**{key: change(value) for key, value in data.items()}) == wanted
        changed = evaluate_distances(change(distances), **labels)
        assert changed == evaluate_distances(distances, **labels)
