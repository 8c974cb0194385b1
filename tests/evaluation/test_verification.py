import numpy as np
import pytest
import torch

from vitdown.evaluation.functional import roc_curve, tpr_at_fpr

from .definition import pair_scores
from .test_ranking import random_set, split

RATES = (0.001, 0.01, 0.07, 0.29, 0.5, 1.0)


def all_pairs(data, metric):
    """Scores of the positives and of the negatives."""
    features, labels = split(data)
    scores = pair_scores(*features, metric)
    same = labels['query_ids'][:, None] == labels['gallery_ids']
    junk = np.zeros_like(same)
    if 'query_cameras' in labels:
        junk = same & (labels['query_cameras'][:, None] == labels['gallery_cameras'])
    return scores[same & ~junk], scores[~same]


def best_rate(positives, negatives, limit):
    """Try all thresholds there are."""
    best = 0.0
    for threshold in np.r_[positives, negatives]:
        if 1000 * (negatives >= threshold).sum() <= round(1000 * limit) * len(negatives):
            best = max(best, (positives >= threshold).mean())
    return best


def expected(data, metric):
    pairs = all_pairs(data, metric)
    return {f'TPR@FPR={limit:g}': best_rate(*pairs, limit) for limit in RATES}


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('cameras', [True, False])
@pytest.mark.parametrize('seed', range(3))
def test_equals_definition(metric, cameras, seed):
    data = random_set(seed, num_query=8 + seed, num_gallery=70, dims=3 + 9 * seed)
    if not cameras:
        del data['query_cameras'], data['gallery_cameras']
    assert tpr_at_fpr(**data, fpr=RATES, metric=metric) == expected(data, metric)


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_ties_are_accepted_together(metric):
    data = random_set(3, num_query=10, num_gallery=100, dims=5)
    generator = np.random.default_rng(9)
    prototypes = np.array([[a, b, c, 0, 0] for a in (1, -1) for b in (0, 2) for c in (0, 2)])
    for key in ('query_features', 'gallery_features'):
        data[key] = prototypes[generator.integers(0, 8, len(data[key]))].astype(np.float32)
    wanted = {}
    # The same arithmetic gives ties that rounding hides.
    positives, negatives = (x.round(9) for x in all_pairs(data, metric))
    for limit in RATES:
        wanted[f'TPR@FPR={limit:g}'] = best_rate(positives, negatives, limit)
    assert 0 < wanted['TPR@FPR=0.29'] < 1
    assert tpr_at_fpr(**data, fpr=RATES, metric=metric) == wanted


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('value', [0.0, 0.3])
def test_collapsed_model_verifies_nothing(metric, value):
    data = random_set(4, dims=384)
    for key in ('query_features', 'gallery_features'):
        data[key] = np.full_like(data[key], value)
    assert set(tpr_at_fpr(**data, fpr=(1e-4, 0.5, 0.99), metric=metric).values()) == {0.0}


def test_scores_closer_than_a_bin_are_told_apart():
    # All pairs fall into one bin of the first pass.
    angles = np.array([0.0, 1.0, 2.0, 3.0, 4.0]) * 1e-4
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    result = tpr_at_fpr(gallery[:1], gallery, [1], [1, 1, 2, 1, 3], fpr=(0.1, 0.5))
    assert result == {'TPR@FPR=0.1': 2 / 3, 'TPR@FPR=0.5': 1.0}


def test_leaves_the_query_itself_out():
    features = np.eye(4, dtype=np.float32) + 0.1
    ids = [1, 1, 2, 3]
    with_itself = tpr_at_fpr(features, features, ids, ids, fpr=(0.1,))
    without = tpr_at_fpr(features, features, ids, ids, fpr=(0.1,), self_index=range(4))
    assert with_itself == {'TPR@FPR=0.1': 4 / 6}
    assert without == {'TPR@FPR=0.1': 0.0}


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_curve_equals_definition(metric):
    data = random_set(5)
    curve = roc_curve(**data, metric=metric)
    positives, negatives = all_pairs(data, metric)
    if metric == 'euclidean':
        positives, negatives = -np.sqrt(-positives), -np.sqrt(-negatives)
    assert len(curve.fpr) > 100
    for fpr, tpr, threshold in zip(curve.fpr, curve.tpr, curve.thresholds):
        assert fpr == pytest.approx((negatives >= threshold).mean(), abs=1e-12)
        assert tpr == pytest.approx((positives >= threshold).mean(), abs=1e-12)
    assert (curve.fpr[0], curve.tpr[0], curve.thresholds[0]) == (0, 0, np.inf)
    assert (curve.fpr[-1], curve.tpr[-1]) == (1, 1)


def test_memory_bound_does_not_change_results():
    data = random_set(6, num_query=40)
    wanted = tpr_at_fpr(**data, fpr=RATES)
    assert tpr_at_fpr(**data, fpr=RATES, max_memory_mb=0.02) == wanted


def test_accepts_half_precision_tensors():
    data = random_set(7)
    for key in ('query_features', 'gallery_features'):
        data[key] = torch.from_numpy(data[key]).half()
    wanted = {**data, **{key: data[key].numpy() for key in data if key.endswith('features')}}
    assert tpr_at_fpr(**data, fpr=RATES) == expected(wanted, 'cosine')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'fpr': ()}, 'fpr must be a sequence of rates'),
        ({'fpr': 0.1}, 'fpr must be a sequence of rates'),
        ({'fpr': (0.0,)}, 'above 0 and at most 1, not 0.0'),
        ({'fpr': (2,)}, 'above 0 and at most 1, not 2'),
        ({'max_memory_mb': 1e-4}, 'max_memory_mb=0.0001'),
        ({'gallery_ids': np.arange(90) + 100}, 'no pairs of one identity among 12 queries'),
        (
            {'gallery_ids': np.ones(90, int), 'query_ids': np.ones(12, int)},
            'no pairs of different identities',
        ),
    ],
)
def test_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        tpr_at_fpr(**{**random_set(8), **options})
