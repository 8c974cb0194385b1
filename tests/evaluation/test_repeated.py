import itertools

import numpy as np
import pytest

from vitdown.evaluation.functional import evaluate_single_gallery_shot, evaluate_vehicleid
from vitdown.evaluation.functional import repeated as repeated_module

from .definition import metrics, pair_scores
from .test_ranking import random_set, split

TOPK = (1, 3, 1000)


@pytest.fixture
def draws(monkeypatch):
    """The draws of an evaluation, in the order of its galleries."""
    recorded = []
    original = repeated_module._one_of_each

    def record(ids, generator):
        recorded.append(original(ids, generator))
        return recorded[-1]

    monkeypatch.setattr(repeated_module, '_one_of_each', record)
    return recorded


def by_definition(scores, query_ids, gallery_ids, galleries):
    """Averages and AP of one draw; each query has a gallery of its own, a list of indices."""
    ap, inp, first = np.full((3, len(query_ids)), np.nan)
    for i, gallery in enumerate(galleries):
        if query_ids[i] in gallery_ids[gallery]:
            result = metrics(scores[[i]][:, gallery], query_ids[[i]], gallery_ids[gallery])
            ap[i], inp[i], first[i] = (result[key][0] for key in ('AP', 'INP', 'first_hit_rank'))
    valid = ~np.isnan(ap)
    averages = {'mAP': ap[valid].mean(), 'mINP': inp[valid].mean()}
    averages.update({f'CMC@{k}': (first[valid] <= k).mean() for k in TOPK})
    return averages, ap


def assert_averaged(result, of_draws, ap):
    for name in of_draws[0]:
        values = [averages[name] for averages in of_draws]
        assert result[name] == pytest.approx(np.mean(values), rel=1e-12), name
        assert result[f'{name}_std'] == pytest.approx(np.std(values), abs=1e-12), name
    some = ~np.isnan(ap).all(axis=0)
    np.testing.assert_allclose(result['AP'][some], np.nanmean(ap[:, some], axis=0), rtol=1e-12)
    assert np.isnan(result['AP'][~some]).all()
    assert result['num_valid_queries'] == some.sum()


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('cameras', [True, False])
def test_equals_definition(metric, cameras, draws):
    data = random_set(0)
    if not cameras:
        del data['query_cameras'], data['gallery_cameras']
    result = evaluate_single_gallery_shot(
        **data, metric=metric, topk=TOPK, repeats=4, seed=7, return_per_query=True
    )
    features, labels = split(data)
    scores = pair_scores(*features, metric)
    of_draws, aps = [], []
    groups = [*range(3)] if cameras else [None]
    assert len(draws) == 4 * len(groups)
    for repeat in range(4):
        galleries = {}
        for place, camera in enumerate(groups):
            candidates = np.arange(90)
            if cameras:
                candidates = np.flatnonzero(data['gallery_cameras'] != camera)
            galleries[camera] = candidates[draws[repeat * len(groups) + place]]
            ids = labels['gallery_ids'][galleries[camera]]
            assert sorted(ids) == sorted(set(labels['gallery_ids'][candidates]))
        own_cameras = data['query_cameras'] if cameras else [None] * 12
        averages, ap = by_definition(
            scores, labels['query_ids'], labels['gallery_ids'], [galleries[c] for c in own_cameras]
        )
        of_draws.append(averages)
        aps.append(ap)
    assert_averaged(result, of_draws, np.array(aps))


def test_vehicleid_equals_definition(draws):
    data = random_set(1, num_query=30)
    features, ids = data['query_features'], data['query_ids']
    result = evaluate_vehicleid(features, ids, topk=TOPK, repeats=5, return_per_query=True)
    scores = pair_scores(features, features, 'cosine')
    of_draws, aps = [], []
    for drawn in draws:
        # All others are queries.
        query = np.setdiff1d(np.arange(30), drawn)
        averages, ap = by_definition(scores[query], ids[query], ids, [drawn] * len(query))
        of_draws.append(averages)
        aps.append(np.full(30, np.nan))
        aps[-1][query] = ap
    assert len(of_draws) == 5
    assert_averaged(result, of_draws, np.array(aps))


def test_all_draws_are_equally_likely():
    ids = np.array([4, 9, 4, 9, 9])
    generator = np.random.default_rng(0)
    drawn = [tuple(repeated_module._one_of_each(ids, generator)) for _ in range(3000)]
    possible = [tuple(sorted(pair)) for pair in itertools.product((0, 2), (1, 3, 4))]
    shares = [drawn.count(pair) / 3000 for pair in possible]
    np.testing.assert_allclose(shares, 1 / 6, atol=0.03)


def test_forced_draws_do_not_spread():
    # One gallery image of each identity in each camera: with two cameras nothing is left to chance.
    generator = np.random.default_rng(2)
    ids, cameras = np.repeat(np.arange(5), 2), np.tile([0, 1], 5)
    features = generator.normal(size=(10, 4)).astype(np.float32)
    result = evaluate_single_gallery_shot(
        features, features, ids, ids, cameras, cameras, topk=TOPK, repeats=3
    )
    galleries = [np.flatnonzero(cameras != camera) for camera in cameras]
    scores = pair_scores(features, features, 'cosine')
    wanted, _ = by_definition(scores, ids, ids, galleries)
    for name, value in wanted.items():
        assert result[name] == pytest.approx(value)
        assert result[f'{name}_std'] == pytest.approx(0, abs=1e-12)


def test_seed_decides_and_memory_does_not():
    data = random_set(3, num_query=40)
    first = evaluate_single_gallery_shot(**data, repeats=3, seed=1)
    assert evaluate_single_gallery_shot(**data, repeats=3, seed=1, max_memory_mb=2e-3) == first
    assert evaluate_single_gallery_shot(**data, repeats=3, seed=2) != first


def test_defaults_follow_the_papers(draws):
    data = random_set(4)
    for key in ('query_cameras', 'gallery_cameras'):
        del data[key]
    evaluate_single_gallery_shot(**data)
    assert len(draws) == 100
    evaluate_vehicleid(data['gallery_features'], data['gallery_ids'])
    assert len(draws) == 110


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'repeats': 0}, 'repeats must be an integer of at least 1'),
        ({'seed': -1}, 'seed must be an integer of at least 0'),
        ({'topk': 5}, 'topk'),
        ({'metric': 'l1'}, 'metric must be one of'),
        ({'gallery_cameras': None}, 'query_cameras are given without gallery_cameras'),
        ({'gallery_ids': np.arange(90) + 100}, 'none of the 12 queries has a positive'),
        ({'gallery_cameras': np.zeros(90, int), 'query_cameras': np.zeros(12, int)}, 'none of the'),
    ],
)
def test_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_single_gallery_shot(**{**random_set(5), **options})
