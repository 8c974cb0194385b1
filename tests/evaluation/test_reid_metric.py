import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement

from vitdown.evaluation.functional import (
    evaluate_distances,
    evaluate_ranking,
    evaluate_single_gallery_shot,
    evaluate_vehicleid,
    k_reciprocal_rerank,
    query_expansion,
    topk_ranking,
    tpr_at_fpr,
)
from vitdown.evaluation.metrics import ReIDMetric
from vitdown.registry import METRICS

from .test_ranking import random_set, split


def make_samples(features, ids, cameras, subset, start=0):
    return [
        BaseDataElement(
            feature=torch.as_tensor(features[i]),
            metainfo={
                'identity': int(ids[i]),
                'camera_id': int(cameras[i]),
                'view_id': -1,
                'subset': subset,
                'img_path': f'{subset}/{start + i}.jpg',
            },
        )
        for i in range(len(ids))
    ]


def samples_of(data):
    sides = [
        make_samples(data[f'{side}_features'], data[f'{side}_ids'], data[f'{side}_cameras'], side)
        for side in ('query', 'gallery')
    ]
    return sides[0] + sides[1]


def evaluate(samples, **options):
    """Through MMEngine's evaluator, in batches."""
    evaluator = Evaluator([{'type': 'vitdown.ReIDMetric', **options}])
    for start in range(0, len(samples), 16):
        evaluator.process(data_samples=samples[start : start + 16])
    return evaluator.evaluate(len(samples))


def percent(result, prefix='reid/'):
    return {f'{prefix}{key}': pytest.approx(100 * value) for key, value in result.items()}


def test_is_registered():
    assert isinstance(METRICS.build({'type': 'ReIDMetric'}), ReIDMetric)


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_reports_percentages(metric):
    data = random_set(0)
    result = evaluate(samples_of(data), metric=metric, topk=(1, 3))
    wanted = percent(evaluate_ranking(**data, metric=metric, topk=(1, 3)))
    assert result == wanted
    assert list(result) == ['reid/mAP', 'reid/mINP', 'reid/CMC@1', 'reid/CMC@3']


def test_order_of_samples_does_not_matter():
    data = random_set(1)
    samples = samples_of(data)
    order = np.random.default_rng(0).permutation(len(samples))
    assert evaluate([samples[i] for i in order]) == percent(evaluate_ranking(**data))


def test_unknown_cameras_keep_same_camera_images():
    data = random_set(2)
    data['query_cameras'][:] = data['gallery_cameras'][:] = -1
    result = evaluate(samples_of(data))
    del data['query_cameras'], data['gallery_cameras']
    assert result == percent(evaluate_ranking(**data))


@pytest.mark.parametrize('known', [True, False])
def test_images_that_are_query_and_gallery(known):
    data = random_set(3, num_query=40)
    features, ids = data['query_features'], data['query_ids']
    cameras = data['query_cameras'] if known else np.full(40, -1)
    result = evaluate(make_samples(features, ids, cameras, 'both'))
    labels = {'query_cameras': cameras, 'gallery_cameras': cameras} if known else {}
    own = np.arange(40)
    wanted = evaluate_ranking(features, features, ids, ids, self_index=own, **labels)
    assert result == percent(wanted)
    assert result['reid/CMC@1'] < 100


def test_mixes_all_subsets():
    data = random_set(4, num_query=30)
    features, ids = data['query_features'], data['query_ids']
    unknown = np.full(30, -1)
    samples = (
        make_samples(features[:10], ids[:10], unknown, 'gallery')
        + make_samples(features[10:20], ids[10:20], unknown, 'both')
        + make_samples(features[20:], ids[20:], unknown, 'query')
    )
    own = np.r_[np.arange(10, 20), np.full(10, -1)]
    wanted = evaluate_ranking(features[10:], features[:20], ids[10:], ids[:20], self_index=own)
    assert evaluate(samples) == percent(wanted)


def test_same_path_as_query_and_gallery_is_the_query_itself():
    data = random_set(5, num_query=30)
    features, ids = data['query_features'], data['query_ids']
    unknown = np.full(30, -1)
    query = make_samples(features, ids, unknown, 'query')
    gallery = make_samples(features, ids, unknown, 'gallery')
    for sample in query:
        sample.set_metainfo({'img_path': sample.img_path.replace('query', 'gallery')})
    wanted = evaluate_ranking(features, features, ids, ids, self_index=np.arange(30))
    assert evaluate(query + gallery) == percent(wanted)


@pytest.mark.parametrize('rerank', [True, {'k1': 8, 'k2': 3, 'lambda_value': 0.4}])
def test_reranking_is_reported_beside(rerank):
    data = random_set(6)
    features, labels = split(data)
    result = evaluate(samples_of(data), rerank=rerank, topk=(1,))
    options = {} if rerank is True else rerank
    reranked = evaluate_distances(k_reciprocal_rerank(*features, **options), **labels, topk=(1,))
    wanted = percent(evaluate_ranking(**data, topk=(1,)))
    wanted.update(percent(reranked, 'reid/rerank_'))
    assert result == wanted


def test_query_expansion_is_reported_beside():
    data = random_set(15)
    features, labels = split(data)
    result = evaluate(samples_of(data), query_expansion=dict(k=4, alpha=3), topk=(1,))
    expanded = query_expansion(*features, k=4, alpha=3)
    wanted = percent(evaluate_ranking(**data, topk=(1,)))
    wanted.update(percent(evaluate_ranking(expanded, features[1], **labels, topk=(1,)), 'reid/qe_'))
    assert result == wanted


def test_verification_is_reported_beside():
    data = random_set(16)
    result = evaluate(samples_of(data), tpr_at_fpr=(0.01, 0.1), topk=(1,))
    wanted = percent(evaluate_ranking(**data, topk=(1,)))
    wanted.update(percent(tpr_at_fpr(**data, fpr=(0.01, 0.1))))
    assert result == wanted


def test_drawn_galleries():
    data = random_set(17)
    result = evaluate(samples_of(data), protocol='single-gallery-shot', repeats=3, seed=5)
    assert result == percent(evaluate_single_gallery_shot(**data, repeats=3, seed=5))
    assert 'reid/CMC@1_std' in result


def test_vehicleid_draws_from_all_images():
    data = random_set(18, num_query=40)
    features, ids, cameras = (data[f'query_{key}'] for key in ('features', 'ids', 'cameras'))
    samples = make_samples(features[:20], ids[:20], cameras[:20], 'query')
    samples += make_samples(features[20:], ids[20:], cameras[20:], 'gallery')
    wanted = percent(evaluate_vehicleid(features, ids))
    assert evaluate(samples, protocol='vehicleid') == wanted
    # Images that are query and gallery count once.
    samples = make_samples(features, ids, cameras, 'both')
    assert evaluate(samples, protocol='vehicleid') == wanted


def test_lists_are_those_of_the_last_ranking():
    data = random_set(19)
    features, labels = split(data)
    metric = ReIDMetric(num_ranked=5, query_expansion=True)
    metric.process(None, [sample.to_dict() for sample in samples_of(data)])
    metric.evaluate(len(metric.results))
    expanded = query_expansion(*features)
    lists = topk_ranking(expanded, features[1], **labels, k=5, drop_junk=True)
    assert torch.equal(metric.ranking.lists.indices, lists.indices)
    wanted = evaluate_ranking(expanded, features[1], **labels, return_per_query=True)
    np.testing.assert_array_equal(metric.ranking.average_precision, wanted['AP'])


def test_half_precision_storage():
    data = random_set(7)
    metric = ReIDMetric(feature_dtype='float16')
    metric.process(None, [sample.to_dict() for sample in samples_of(data)])
    assert metric.results[0]['feature'].dtype == np.float16
    for key in ('query_features', 'gallery_features'):
        data[key] = data[key].astype(np.float16)
    result = metric.evaluate(len(metric.results))
    assert result == percent(evaluate_ranking(**data))


def test_kept_features_do_not_hold_the_batch():
    batch = torch.randn(3, 5, 4)
    sample = {'feature': batch[1, 2], 'identity': 0, 'camera_id': 0, 'subset': 'both'}
    metric = ReIDMetric()
    metric.process(None, [sample])
    kept = metric.results[0]['feature'].copy()
    batch.zero_()
    np.testing.assert_array_equal(metric.results[0]['feature'], kept)


def test_saves_features(tmp_path):
    data = random_set(8)
    out_file = tmp_path / 'deeper' / 'features.npz'
    evaluate(samples_of(data), out_file=str(out_file))
    with np.load(out_file) as saved:
        for key, value in data.items():
            np.testing.assert_array_equal(saved[key], value, err_msg=key)
        assert saved['query_paths'][3] == 'query/3.jpg'
        assert saved['gallery_paths'][89] == 'gallery/89.jpg'


@pytest.mark.parametrize('key', ['feature', 'identity', 'camera_id', 'subset'])
def test_names_a_missing_entry(key):
    samples = [sample.to_dict() for sample in samples_of(random_set(9))]
    del samples[5][key]
    with pytest.raises(KeyError, match=rf"query/5.jpg has no entry '{key}'"):
        ReIDMetric().process(None, samples)


def test_rejects_samples_of_other_subsets():
    samples = [sample.to_dict() for sample in samples_of(random_set(10))]
    samples[2]['subset'] = 'train'
    with pytest.raises(ValueError, match="query/2.jpg is of subset 'train'"):
        ReIDMetric().process(None, samples)


def test_rejects_features_that_are_not_vectors():
    samples = [sample.to_dict() for sample in samples_of(random_set(11))]
    samples[1]['feature'] = torch.zeros(2, 16)
    with pytest.raises(ValueError, match=r'query/1.jpg must have the shape \(D,\), not \(2, 16\)'):
        ReIDMetric().process(None, samples)


def test_rejects_features_of_different_size():
    samples = samples_of(random_set(12))
    samples[0].feature = torch.zeros(5)
    with pytest.raises(ValueError, match='features of the query differ in shape'):
        evaluate(samples)


@pytest.mark.parametrize('subset', ['query', 'gallery'])
def test_rejects_one_sided_sets(subset):
    samples = [sample for sample in samples_of(random_set(13)) if sample.subset != subset]
    with pytest.raises(ValueError, match=f'no {subset} images among .* subset='):
        evaluate(samples)


def test_rejects_partly_known_cameras():
    samples = samples_of(random_set(14))
    samples[20].set_metainfo({'camera_id': -1})
    with pytest.raises(ValueError, match="1 of 102 images have no camera id .* 'gallery/8.jpg'"):
        evaluate(samples)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'metric': 'l1'}, 'metric must be one of'),
        ({'topk': (0,)}, 'topk'),
        ({'feature_dtype': 'int8'}, 'feature_dtype'),
        ({'out_file': 'features.pkl'}, 'must end in .npz'),
        ({'rerank': {'k3': 1}}, r"rerank knows .* not \['k3'\]"),
        ({'rerank': 1}, 'rerank must be True, False or a dict'),
        ({'query_expansion': {'n': 1}}, r"query_expansion knows .* not \['n'\]"),
        ({'query_expansion': {'k': 0}}, 'query_expansion: k must be an integer of at least 1'),
        ({'query_expansion': {'alpha': 3}, 'metric': 'euclidean'}, "use metric='cosine'"),
        ({'tpr_at_fpr': (2.0,)}, 'tpr_at_fpr: each rate must be above 0'),
        ({'tpr_at_fpr': 0.1}, 'tpr_at_fpr must be a sequence'),
        ({'protocol': 'market'}, "protocol must be one of .* not 'market'"),
        ({'repeats': 5}, "repeats=5 needs a protocol that draws .* not 'auto'"),
        ({'repeats': 0, 'protocol': 'vehicleid'}, 'repeats must be an integer of at least 1'),
        ({'seed': -1}, 'seed must be'),
        ({'rerank': {}, 'protocol': 'vehicleid'}, 'rerank needs a fixed gallery'),
        ({'tpr_at_fpr': [0.1], 'protocol': 'vehicleid'}, 'tpr_at_fpr needs a fixed gallery'),
    ],
)
def test_rejects_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ReIDMetric(**options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'max_memory_mb': float('nan')}, 'max_memory_mb must be a number above 0 .*, not nan'),
        ({'max_memory_mb': '512'}, "not '512'"),
        ({'max_memory_mb': 0}, 'not 0'),
        ({'max_memory_mb': True}, 'not True'),
        ({'device': 'gpu'}, "device must be e.g. 'cpu' or 'cuda', not 'gpu'"),
        ({'device': 'cuda:99'}, "device='cuda:99' is not here: .*use device='cpu'"),
    ],
)
def test_memory_bound_and_device_are_checked_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        ReIDMetric(**options)
