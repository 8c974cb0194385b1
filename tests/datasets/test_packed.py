"""Datasets packed in one file."""

import io

import numpy as np
import pytest
from PIL import Image

from vitdown.datasets import Flowers17, Nyala, Omniglot
from vitdown.datasets.transforms import LoadReIDImage


def samples_of(dataset, *keys):
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    return [tuple(info[key] for key in keys) for info in infos]


@pytest.mark.parametrize('whole_path', [True, False])
def test_omniglot(omniglot_file, whole_path):
    data_root = str(omniglot_file if whole_path else omniglot_file.parent)
    dataset = Omniglot(data_root, 'train', pipeline=[LoadReIDImage()])
    assert samples_of(dataset, 'identity', 'gt_label', 'camera_id') == [
        (identity, identity, drawer) for identity in range(2) for drawer in range(4)
    ]
    assert dataset[5]['img'].shape == (6, 6, 3)
    assert dataset[5]['img'].dtype == np.uint8
    assert np.unique(dataset[5]['img']) == [5]

    dataset = Omniglot(data_root, 'test')
    assert samples_of(dataset, 'identity', 'camera_id', 'subset') == [
        (2, drawer, 'both') for drawer in range(4)
    ]
    assert dataset.get_data_info(3)['img_path'] == 'Sanskrit/character0002/drawer03'


def test_nyala(nyala_file):
    dataset = Nyala(str(nyala_file), 'train', pipeline=[LoadReIDImage()])
    keys = ('identity', 'gt_label', 'camera_id', 'view_id')
    assert samples_of(dataset, *keys) == [(i // 4, i // 4, i // 2, i % 2) for i in range(8)]
    # The red of image i is i, up to the compression.
    assert [round(dataset[index]['img'][..., 2].mean()) for index in range(8)] == pytest.approx(
        list(range(8)), abs=2
    )
    dataset = Nyala(str(nyala_file.parent), 'test')
    assert samples_of(dataset, 'identity', 'camera_id', 'subset') == [
        (2, camera, 'both') for camera in (4, 4, 5, 5)
    ]


@pytest.mark.parametrize(('view', 'view_id'), [('left', 0), ('right', 1)])
def test_nyala_flanks(nyala_file, view, view_id):
    dataset = Nyala(str(nyala_file), 'test', view=view)
    assert samples_of(dataset, 'camera_id', 'view_id') == [(4, view_id), (5, view_id)]


def test_corrupt_jpeg_is_skipped(nyala_file):
    arrays = dict(np.load(nyala_file))
    start = arrays['offsets'][3]
    arrays['jpeg'][start : start + 20] = 0
    np.savez(nyala_file, **arrays)
    dataset = Nyala(str(nyala_file), 'train', corrupt='skip', pipeline=[LoadReIDImage()])
    assert len([dataset[index] for index in range(len(dataset))]) == 7
    dataset = Nyala(str(nyala_file), 'train', pipeline=[LoadReIDImage()])
    with pytest.raises(OSError, match=r'0/1_1\.jpg.*truncated or not an image'):
        dataset[3]


def test_subset_keeps_its_images(omniglot_file):
    dataset = Omniglot(str(omniglot_file), 'train').get_subset([6, 1])
    assert [np.unique(dataset[index]['img']).item() for index in range(2)] == [6, 1]


@pytest.mark.parametrize(
    ('dataset_class', 'name'),
    [(Omniglot, 'omniglot'), (Nyala, 'nyala'), (Flowers17, 'flowers17')],
)
def test_missing_file_says_how_to_point_to_it(tmp_path, dataset_class, name):
    for data_root in (tmp_path, tmp_path / 'nowhere'):
        with pytest.raises(FileNotFoundError, match=rf'{name}\*\.npz.*data_root.*README'):
            dataset_class(str(data_root), 'train')


def test_errors(nyala_file, omniglot_file):
    with pytest.raises(ValueError, match=r'lacks the array\(s\) images'):
        Omniglot(str(nyala_file), 'train')
    with pytest.raises(ValueError, match=r"\['train', 'test'\], got 'query'"):
        Nyala(str(nyala_file), 'query')
    with pytest.raises(ValueError, match="got 'top'"):
        Nyala(str(nyala_file), 'test', view='top')


@pytest.fixture
def flowers_file(tmp_path):
    """Six images of three classes, image i of colour i; the last of each class for testing."""
    files = []
    for index in range(6):
        stream = io.BytesIO()
        Image.new('RGB', (8, 8), (40 * index, 0, 0)).save(stream, 'JPEG')
        files.append(np.frombuffer(stream.getvalue(), np.uint8))
    path = tmp_path / 'flowers17.npz'
    np.savez(
        path,
        jpeg=np.concatenate(files),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=np.uint8([0, 0, 1, 1, 2, 2]),
        split=np.uint8([0, 1] * 3),
        class_names=np.array(['crocus', 'daisy', 'iris']),
    )
    return path


def test_flowers17(flowers_file):
    train = Flowers17(str(flowers_file), 'train', pipeline=[LoadReIDImage()])
    assert samples_of(train, 'gt_label') == [(0,), (1,), (2,)]
    assert train.metainfo['classes'] == ('crocus', 'daisy', 'iris')
    reds = [train[index]['img'][..., 2].mean() for index in range(3)]
    assert reds == pytest.approx([0, 80, 160], abs=4)
    test = Flowers17(str(flowers_file.parent), 'test')
    assert samples_of(test, 'img_path') == [('crocus/0001',), ('daisy/0003',), ('iris/0005',)]


def test_errors_of_flowers17(flowers_file, tmp_path):
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        Flowers17(str(flowers_file), 'val')
    np.savez(tmp_path / 'other.npz', jpeg=np.zeros(1))
    with pytest.raises(ValueError, match=r'other.npz lacks the array\(s\) offsets, labels'):
        Flowers17(str(tmp_path / 'other.npz'))
