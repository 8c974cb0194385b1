"""Which protocol features are evaluated by, and what of them is kept in files."""

import numpy as np
import pytest

from tests.datasets.conftest import write_images
from vitdown.datasets import VERIWild
from vitdown.evaluation.evaluate import EvaluationOptions, evaluate_feature_sets
from vitdown.evaluation.feature_set import FeatureSet, load_feature_sets, save_feature_sets
from vitdown.evaluation.functional import evaluate_ranking

from .definition import metrics, pair_scores
from .test_ranking import random_set


def sets_of(data):
    return tuple(
        FeatureSet(
            data[f'{side}_features'],
            data[f'{side}_ids'],
            data[f'{side}_cameras'],
            np.array([f'{side}/{i}.jpg' for i in range(len(data[f'{side}_ids']))]),
        )
        for side in ('query', 'gallery')
    )


def evaluate(query, gallery, **options):
    return evaluate_feature_sets(query, gallery, EvaluationOptions(**options)).metrics


def without_cameras(data):
    return {key: value for key, value in data.items() if not key.endswith('cameras')}


def test_cross_camera_where_cameras_are_known():
    data = random_set(0)
    sets = sets_of(data)
    wanted = evaluate_ranking(**data)
    assert evaluate(*sets) == evaluate(*sets, protocol='cross-camera') == wanted
    plain = evaluate_ranking(**without_cameras(data))
    assert evaluate(*sets, protocol='plain') == plain != wanted


def test_plain_where_cameras_are_unknown():
    data = random_set(1)
    query, gallery = sets_of(data)
    query.cameras[:] = gallery.cameras[:] = -1
    assert evaluate(query, gallery) == evaluate_ranking(**without_cameras(data))
    with pytest.raises(ValueError, match='needs camera ids, and no image has one'):
        evaluate(query, gallery, protocol='cross-camera')


def test_partly_known_cameras():
    data = random_set(2)
    query, gallery = sets_of(data)
    gallery.cameras[8] = -1
    for protocol in ('auto', 'cross-camera', 'single-gallery-shot'):
        with pytest.raises(ValueError, match="1 of 102 images have no camera.* 'gallery/8.jpg'"):
            evaluate(query, gallery, protocol=protocol)
    assert evaluate(query, gallery, protocol='plain') == evaluate_ranking(**without_cameras(data))


def test_same_path_is_the_query_itself():
    data = random_set(3, num_query=30)
    query, _ = sets_of(data)
    wanted = evaluate_ranking(
        query.features, query.features, query.ids, query.ids, self_index=np.arange(30)
    )
    assert evaluate(query, query, protocol='plain') == wanted


def test_veri_wild_is_cross_camera_with_its_lists(tmp_path):
    """One query of each vehicle, and a gallery that holds images of the same camera, too."""
    names = [f'{vehicle:05d}/{image:06d}' for vehicle in range(1, 6) for image in range(6)]
    cameras = np.random.default_rng(0).integers(1, 4, len(names))
    write_images(tmp_path / 'images', *(f'{name}.jpg' for name in names))
    lists = {
        'train_list': names[:1],
        'test_3000_query': names[::6],
        'test_3000': [name for i, name in enumerate(names) if i % 6],
        'vehicle_info': [
            'id/image;Camera ID;Time;Model;Type;Color',
            *(f'{name};{camera};;;;' for name, camera in zip(names, cameras)),
        ],
    }
    (tmp_path / 'train_test_split').mkdir()
    for name, lines in lists.items():
        (tmp_path / 'train_test_split' / f'{name}.txt').write_text('\n'.join(lines) + '\n')

    dataset = VERIWild(str(tmp_path), 'test', corrupt='skip')
    samples = [dataset.get_data_info(index) for index in range(len(dataset))]
    features = np.random.default_rng(1).normal(size=(len(samples), 8)).astype(np.float32)
    query, gallery = (
        FeatureSet(
            features[[x['subset'] == subset for x in samples]],
            *(
                np.array([x[key] for x in samples if x['subset'] == subset])
                for key in ('identity', 'camera_id', 'img_path')
            ),
        )
        for subset in ('query', 'gallery')
    )
    assert (len(query), len(gallery)) == (5, 25)
    # By definition, with the vehicles and cameras that the names and lists give
    ids = np.repeat(np.arange(1, 6), 6)
    is_query = np.arange(30) % 6 == 0
    wanted = metrics(
        pair_scores(query.features, gallery.features, 'cosine'),
        ids[is_query], ids[~is_query], cameras[is_query], cameras[~is_query],
    )  # fmt: skip
    result = evaluate(query, gallery, topk=(1,))
    for name in ('mAP', 'mINP', 'CMC@1'):
        assert result[name] == pytest.approx(wanted[name])


class TestFeatureFiles:
    @pytest.fixture
    def arrays(self):
        return random_set(4)

    def load(self, tmp_path, arrays):
        np.savez(tmp_path / 'features.npz', **arrays)
        return load_feature_sets(tmp_path / 'features.npz')

    def test_there_and_back(self, tmp_path, arrays):
        written = sets_of(arrays)
        save_feature_sets(tmp_path / 'deeper' / 'features.npz', *written)
        for part, wanted in zip(load_feature_sets(tmp_path / 'deeper' / 'features.npz'), written):
            for key, value in vars(wanted).items():
                np.testing.assert_array_equal(getattr(part, key), value)

    def test_cameras_and_paths_may_be_missing(self, tmp_path, arrays):
        query, gallery = self.load(tmp_path, without_cameras(arrays))
        assert set(query.cameras) == {-1}
        assert set(gallery.paths) == {''}
        assert evaluate(query, gallery) == evaluate_ranking(**without_cameras(arrays))

    @pytest.mark.parametrize('key', ['query_features', 'gallery_ids'])
    def test_names_a_missing_array(self, tmp_path, arrays, key):
        del arrays[key]
        with pytest.raises(ValueError, match=f"features.npz holds no array '{key}'; it holds .*_"):
            self.load(tmp_path, arrays)

    @pytest.mark.parametrize('key', ['query_ids', 'gallery_cameras'])
    def test_names_an_array_that_does_not_fit(self, tmp_path, arrays, key):
        arrays[key] = arrays[key][:-1]
        with pytest.raises(ValueError, match=rf'{key} has the shape \(\d+,\), which does not fit'):
            self.load(tmp_path, arrays)

    def test_names_an_array_of_another_type(self, tmp_path, arrays):
        arrays['query_cameras'] = arrays['query_cameras'] + 0.5
        with pytest.raises(ValueError, match='query_cameras must be integers, not float64'):
            self.load(tmp_path, arrays)

    def test_reads_no_pickled_objects(self, tmp_path, arrays):
        arrays['query_paths'] = np.array(['a.jpg', None] * 6, dtype=object)
        with pytest.raises(ValueError, match="'query_paths' cannot be read .* dtype=str"):
            self.load(tmp_path, arrays)

    def test_other_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='none.npz does not exist'):
            load_feature_sets(tmp_path / 'none.npz')
        np.save(tmp_path / 'features.npy', np.zeros(3))
        with pytest.raises(ValueError, match=r'features.npy is no .npz file'):
            load_feature_sets(tmp_path / 'features.npy')
