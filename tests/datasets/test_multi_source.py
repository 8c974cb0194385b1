"""Training on several datasets at once."""

import numpy as np
import pytest

from tests.datasets.conftest import write_images
from vitdown.datasets import MultiSourceReID
from vitdown.datasets.transforms import LoadReIDImage


@pytest.fixture
def sources(market, omniglot_file):
    write_images(market / 'own', 'train/rex/1.jpg', 'train/bo/1.jpg')
    return [
        dict(type='Market1501', data_root=str(market)),
        dict(type='FolderReIDDataset', data_root=str(market / 'own'), subset='train'),
        dict(type='vitdown.Omniglot', data_root=str(omniglot_file)),
    ]


def test_identities_and_cameras_are_kept_apart(sources):
    dataset = MultiSourceReID(sources, pipeline=[LoadReIDImage()])
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert {info['source']: 0 for info in infos}.keys() == {0, 1, 2}
    labels, cameras = {}, {}
    for info in infos:
        assert info['identity'] == info['gt_label']
        labels.setdefault(info['source'], set()).add(info['gt_label'])
        cameras.setdefault(info['source'], set()).add(info['camera_id'])
    assert labels == {0: {0, 1, 2}, 1: {3, 4}, 2: {5, 6}}
    assert cameras == {0: {0, 1, 2, 5}, 1: {-1}, 2: {6, 7, 8, 9}}
    assert dataset.metainfo['num_identities'] == 7
    assert dataset.metainfo['num_cameras'] == 10
    np.testing.assert_array_equal(dataset.get_gt_labels(), [info['gt_label'] for info in infos])


def test_images_come_from_their_source(sources):
    dataset = MultiSourceReID(sources, pipeline=[LoadReIDImage()])
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample['img'].shape == ((6, 6, 3) if sample['source'] == 2 else (16, 8, 3))


def test_statistics_per_source(sources):
    assert MultiSourceReID(sources).statistics() == {
        '0: Market1501': dict(identities=3, images=4, cameras=4),
        '1: FolderReIDDataset': dict(identities=2, images=2, cameras=0),
        '2: Omniglot': dict(identities=2, images=8, cameras=4),
        'train': dict(identities=7, images=14, cameras=8),
    }


def test_corrupt_images_are_skipped_in_any_source(sources, market):
    (market / 'own/train/rex/1.jpg').write_bytes(b'')
    assert len(MultiSourceReID(sources, corrupt='skip')) == 13


def test_errors(sources):
    with pytest.raises(ValueError, match='is empty'):
        MultiSourceReID([])
    with pytest.raises(ValueError, match=r"datasets\[1\] has subset='test'"):
        MultiSourceReID([sources[0], {**sources[1], 'subset': 'test'}])
    with pytest.raises(ValueError, match=r'datasets\[0\] has a pipeline'):
        MultiSourceReID([{**sources[0], 'pipeline': [dict(type='LoadReIDImage')]}])
