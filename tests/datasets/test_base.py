"""What all re-ID datasets share, shown on Market-1501's layout."""

import logging
import os

import numpy as np
import pytest
from mmengine.dataset import ConcatDataset

from tests.datasets.conftest import write_image, write_images
from vitdown.datasets import Market1501, base
from vitdown.datasets.transforms import LoadReIDImage


def warnings_in(logged):
    return [message for level, message in logged if level == logging.WARNING]


def test_train_labels_follow_sorted_identities(market):
    dataset = Market1501(str(market), 'train')
    samples = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert [sample['identity'] for sample in samples] == [2, 7, 7, 1500]
    assert [sample['gt_label'] for sample in samples] == [0, 1, 1, 2]
    assert [sample['camera_id'] for sample in samples] == [5, 0, 1, 2]
    assert {sample['view_id'] for sample in samples} == {-1}
    assert {sample['subset'] for sample in samples} == {'train'}
    np.testing.assert_array_equal(dataset.get_gt_labels(), [0, 1, 1, 2])
    assert dataset.get_cat_ids(3) == [2]


def test_junk_is_dropped_distractors_stay(market):
    dataset = Market1501(str(market), 'gallery')
    assert [dataset.get_data_info(index)['identity'] for index in range(len(dataset))] == [0, 1, 3]
    assert 'gt_label' not in dataset.get_data_info(0)


def test_test_subset_is_query_then_gallery(market):
    dataset = Market1501(str(market), 'test')
    subsets = [dataset.get_data_info(index)['subset'] for index in range(len(dataset))]
    assert subsets == ['query'] * 2 + ['gallery'] * 3


def test_order_does_not_depend_on_the_file_system(market, monkeypatch):
    expected = [s['img_path'] for s in Market1501(str(market), 'train', serialize_data=False)]
    listdir = os.listdir
    monkeypatch.setattr(os, 'listdir', lambda path: sorted(listdir(path), reverse=True))
    found = [s['img_path'] for s in Market1501(str(market), 'train', serialize_data=False)]
    assert found == expected == sorted(expected)


def test_metainfo_and_statistics(market):
    dataset = Market1501(str(market), 'test')
    assert dataset.statistics() == {
        'query': dict(identities=2, images=2, cameras=2),
        'gallery': dict(identities=3, images=3, cameras=3),
    }
    assert dataset.metainfo == dict(
        dataset_name='Market1501', num_identities=3, num_cameras=5, num_views=0
    )


def test_statistics_are_logged_as_a_table(market, logged):
    Market1501(str(market), 'test')
    table = next(message for level, message in logged if level == logging.INFO)
    assert [line.split() for line in table.splitlines()[1:]] == [
        ['subset', 'identities', 'images', 'cameras'],
        ['query', '2', '2', '2'],
        ['gallery', '3', '3', '3'],
    ]


def test_counts_other_than_published_give_one_warning(market, logged):
    Market1501(str(market), 'test')
    (warning,) = warnings_in(logged)
    assert 'query images: 2 (published: 3368)' in warning
    assert 'gallery identities: 3 (published: 751)' in warning
    assert 'not comparable' in warning


def test_published_counts_give_no_warning(market, logged, monkeypatch):
    monkeypatch.setattr(Market1501, 'published', {'train': (3, 4, None)})
    Market1501(str(market), 'train')
    assert not warnings_in(logged)


def test_identity_only_in_query_is_reported(market, logged):
    write_images(market, 'query/0042_c2s1_000001_00.jpg')
    Market1501(str(market), 'test')
    (warning,) = [text for text in warnings_in(logged) if 'skipped' in text]
    assert '1 queries' in warning
    assert '42' in warning


def test_lazy_init_loads_at_first_use(market):
    dataset = Market1501(str(market), 'train', lazy_init=True)
    assert 'num_identities' not in dataset.metainfo
    assert len(dataset) == 4
    assert dataset.metainfo['num_identities'] == 3


@pytest.mark.parametrize('serialize_data', [True, False])
def test_indices_and_subsets(market, serialize_data):
    dataset = Market1501(str(market), 'train', indices=[3, 0], serialize_data=serialize_data)
    np.testing.assert_array_equal(dataset.get_gt_labels(), [2, 0])
    assert dataset.statistics()['train']['images'] == 4
    np.testing.assert_array_equal(dataset.get_subset([1]).get_gt_labels(), [0])


def test_works_in_mmengine_wrappers(market):
    joined = ConcatDataset([Market1501(str(market), 'train') for _ in range(2)])
    assert len(joined) == 8
    assert joined.get_data_info(5)['identity'] == 7


class TestCorruptImages:
    @pytest.fixture
    def damaged(self, market):
        write_image(market / 'bounding_box_train/1600_c1s1_000001_01.jpg').write_bytes(b'')
        whole = write_image(market / 'bounding_box_train/0002_c1s1_000009_01.jpg')
        whole.write_bytes(whole.read_bytes()[:-40])
        return market

    def test_error_names_the_file(self, damaged):
        dataset = Market1501(str(damaged), 'train', pipeline=[LoadReIDImage()])
        assert len(dataset) == 6
        with pytest.raises(OSError, match=r"1600_c1s1_000001_01\.jpg.*0 bytes.*corrupt='skip'"):
            dataset[5]
        with pytest.raises(OSError, match=r"0002_c1s1_000009_01\.jpg.*truncated.*corrupt='skip'"):
            dataset[0]

    def test_skip_leaves_them_out_before_labelling(self, damaged, logged):
        dataset = Market1501(str(damaged), 'train', corrupt='skip', pipeline=[LoadReIDImage()])
        np.testing.assert_array_equal(dataset.get_gt_labels(), [0, 1, 1, 2])
        assert [dataset[index]['img'].shape for index in range(len(dataset))] == [(16, 8, 3)] * 4
        (warning,) = [text for text in warnings_in(logged) if 'left out' in text]
        assert '2 of 6' in warning
        assert '0002_c1s1_000009_01.jpg' in warning
        assert '1600_c1s1_000001_01.jpg' in warning

    def test_ranks_agree_on_what_they_skip(self, damaged, monkeypatch):
        shares = {}
        for rank in range(2):
            monkeypatch.setattr(base, 'get_dist_info', lambda rank=rank: (rank, 2))
            monkeypatch.setattr(
                base, 'all_gather_object', lambda bad, rank=rank: [shares.setdefault(rank, bad)]
            )
            Market1501(str(damaged), 'train', corrupt='skip')
        assert shares == {0: [0], 1: [5]}
        monkeypatch.setattr(base, 'all_gather_object', lambda bad: [shares[0], shares[1]])
        for rank in range(2):
            monkeypatch.setattr(base, 'get_dist_info', lambda rank=rank: (rank, 2))
            assert len(Market1501(str(damaged), 'train', corrupt='skip')) == 4


class TestErrors:
    def test_missing_data_root(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r'nowhere.*bounding_box_train') as error:
            Market1501(str(tmp_path / 'nowhere'), 'train')
        assert 'query/*.jpg' in str(error.value)

    def test_missing_folder(self, tmp_path):
        write_images(tmp_path, 'query/0001_c1s1_1.jpg')
        with pytest.raises(FileNotFoundError, match=r"bounding_box_test' does not exist"):
            Market1501(str(tmp_path), 'test')

    def test_empty_split(self, market):
        for path in (market / 'query').iterdir():
            path.unlink()
        with pytest.raises(ValueError, match='no query images found'):
            Market1501(str(market), 'test')

    def test_file_name(self, market):
        write_images(market, 'query/portrait.jpg')
        with pytest.raises(ValueError, match=r'portrait\.jpg.*pattern.*_c'):
            Market1501(str(market), 'query')

    def test_unknown_camera(self, market):
        write_images(market, 'query/0001_c9s1_000001_00.jpg')
        with pytest.raises(ValueError, match=r'0001_c9s1.*camera 9.*1 to 6'):
            Market1501(str(market), 'query')

    def test_subset(self, market):
        with pytest.raises(ValueError, match=r"train.*query.*gallery.*test.*got 'val'"):
            Market1501(str(market), 'val')

    def test_corrupt(self, market):
        with pytest.raises(ValueError, match="'error' or 'skip'"):
            Market1501(str(market), 'train', corrupt='ignore')

    def test_misspelt_argument(self, market):
        with pytest.raises(TypeError, match='pipelines'):
            Market1501(str(market), 'train', pipelines=[])

    def test_labels_outside_training(self, market):
        with pytest.raises(ValueError, match="'query' has no training labels"):
            Market1501(str(market), 'query').get_gt_labels()

    def test_transform_that_returns_none(self, market):
        dataset = Market1501(str(market), 'train', pipeline=[lambda results: None])
        with pytest.raises(RuntimeError, match=r'returned None for .*0002_c6s1'):
            dataset[0]
