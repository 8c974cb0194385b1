"""What holds for any set: against the definition, in any order, in blocks of any size."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vitdown.evaluation.functional import evaluate_ranking

from . import definition

AVERAGES = ('mAP', 'mINP', 'CMC@1', 'CMC@5')


@st.composite
def sets(draw):
    """Small sets in which ties, junk, distractors and queries without a match are common."""
    dims = draw(st.integers(1, 4))
    num_query, num_gallery = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    # Few values on a coarse grid: many features are equal or point the same way.
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = draw(st.sampled_from([2, 5, 1000]))
    features = rng.integers(-values, values + 1, (num_query + num_gallery, dims))
    num_ids, num_cameras = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    ids = rng.integers(0, num_ids, num_query + num_gallery)
    cameras = rng.integers(0, num_cameras, num_query + num_gallery)
    ids[num_query:][rng.random(num_gallery) < 0.2] = 99
    data = {
        'query_features': features[:num_query].astype(np.float32),
        'gallery_features': features[num_query:].astype(np.float32),
        'query_ids': ids[:num_query],
        'gallery_ids': ids[num_query:],
    }
    if draw(st.booleans()):
        data |= {'query_cameras': cameras[:num_query], 'gallery_cameras': cameras[num_query:]}
    return data


def has_positives(data):
    positive = data['query_ids'][:, None] == data['gallery_ids']
    if 'query_cameras' in data:
        positive &= data['query_cameras'][:, None] != data['gallery_cameras']
    return positive.any()


def evaluate(data, **options):
    return evaluate_ranking(**data, topk=(1, 5), return_per_query=True, **options)


@settings(max_examples=150, deadline=None)
@given(data=sets(), metric=st.sampled_from(['cosine', 'euclidean']))
def test_agrees_with_the_definition(data, metric):
    if not has_positives(data):
        with pytest.raises(ValueError, match='has a positive'):
            evaluate(data, metric=metric)
        return
    labels = {name: value for name, value in data.items() if not name.endswith('features')}
    scores = definition.pair_scores(data['query_features'], data['gallery_features'], metric)
    # Cosines that differ by rounding alone are ties.
    scores = np.round(scores, 12)
    wanted = definition.metrics(scores, **labels, topk=(1, 5))
    found = evaluate(data, metric=metric)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(data=sets(), seed=st.integers(0, 2**32 - 1))
def test_order_of_the_gallery_does_not_matter(data, seed):
    assume(has_positives(data))
    order = np.random.default_rng(seed).permutation(len(data['gallery_ids']))
    shuffled = {k: v[order] if k.startswith('gallery') else v for k, v in data.items()}
    wanted, found = evaluate(data), evaluate(shuffled)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(data=sets(), rows=st.integers(1, 6))
def test_size_of_the_blocks_does_not_matter(data, rows):
    assume(has_positives(data))
    wanted = evaluate(data)
    # Room for so many queries all of whose gallery images are of their identity
    found = evaluate(data, max_memory_mb=rows * 144 * len(data['gallery_ids']) / 2**20)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(
    data=sets(),
    side=st.sampled_from(['query', 'gallery']),
    value=st.sampled_from([np.nan, np.inf, -np.inf]),
    place=st.integers(0, 10**6),
)
def test_broken_features_are_named(data, side, value, place):
    features = data[f'{side}_features'].copy()
    row = place % len(features)
    features[row, place % features.shape[1]] = value
    with pytest.raises(ValueError, match=f'{side}_features.*first is row {row}'):
        evaluate(data | {f'{side}_features': torch.from_numpy(features)})


def test_gallery_of_one_image():
    feature = np.ones((1, 3), np.float32)
    result = evaluate_ranking(feature, -feature, [4], [4], topk=(1, 5))
    assert [result[name] for name in AVERAGES] == [1.0] * 4
