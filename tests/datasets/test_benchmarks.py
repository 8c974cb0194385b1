"""Each benchmark's layout, in miniature."""

import pytest

from tests.datasets.conftest import write_images
from vitdown.datasets import (
    CUHK03NP,
    MSMT17,
    DukeMTMCReID,
    OccludedDuke,
    VehicleID,
    VeRi776,
    VERIWild,
)


def triples(dataset):
    """(identity, camera, subset) of each sample."""
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    return [(info['identity'], info['camera_id'], info['subset']) for info in infos]


def write_lists(root, **lists):
    for name, lines in lists.items():
        path = root / f'{name}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('\n'.join(lines) + '\n')


@pytest.mark.parametrize('dataset_class', [DukeMTMCReID, OccludedDuke])
def test_duke(tmp_path, dataset_class):
    write_images(
        tmp_path,
        'bounding_box_train/0005_c8_f0046182.jpg',
        'bounding_box_train/0001_c2_f0046182.jpg',
        'query/0003_c1_f0046182.jpg',
        'bounding_box_test/0003_c7_f0046182.jpg',
    )
    assert triples(dataset_class(str(tmp_path), 'train')) == [(1, 1, 'train'), (5, 7, 'train')]
    assert triples(dataset_class(str(tmp_path), 'test')) == [(3, 0, 'query'), (3, 6, 'gallery')]


@pytest.mark.parametrize('boxes', ['detected', 'labeled'])
def test_cuhk03(tmp_path, boxes):
    write_images(
        tmp_path / boxes,
        'bounding_box_train/0001_c1_1.png',
        'query/0003_c1_21.png',
        'bounding_box_test/0003_c2_26.png',
    )
    assert triples(CUHK03NP(str(tmp_path), 'train', boxes=boxes)) == [(1, 0, 'train')]
    expected = [(3, 0, 'query'), (3, 1, 'gallery')]
    assert triples(CUHK03NP(str(tmp_path), 'test', boxes=boxes)) == expected
    other = 'labeled' if boxes == 'detected' else 'detected'
    with pytest.raises(FileNotFoundError, match=other):
        CUHK03NP(str(tmp_path), 'train', boxes=other)
    with pytest.raises(ValueError, match="got 'drawn'"):
        CUHK03NP(str(tmp_path), 'train', boxes='drawn')


class TestMSMT17:
    train, val = '0000/0000_000_01_0303morning_0015_0.jpg', '0004/0004_001_15_0303noon_0_0.jpg'
    query, gallery = '0002/0002_000_03_0303noon_0_0.jpg', '0002/0002_001_04_0303noon_0_0.jpg'

    @pytest.fixture(params=['v1', 'v2'])
    def version(self, request, tmp_path):
        folders = dict(v1=('train', 'test'), v2=('mask_train_v2', 'mask_test_v2'))[request.param]
        write_images(tmp_path / folders[0], self.train, self.val)
        write_images(tmp_path / folders[1], self.query, self.gallery)
        write_lists(
            tmp_path,
            list_train=[f'{self.train} 0'],
            list_val=[f'{self.val} 4', ''],
            list_query=[f'{self.query} 2'],
            list_gallery=[f'{self.gallery} 2'],
        )
        return request.param

    def test_train_is_train_and_val(self, tmp_path, version):
        dataset = MSMT17(str(tmp_path), 'train', version=version, corrupt='skip')
        assert triples(dataset) == [(0, 0, 'train'), (4, 14, 'train')]

    def test_test(self, tmp_path, version):
        dataset = MSMT17(str(tmp_path), 'test', version=version, corrupt='skip')
        assert triples(dataset) == [(2, 2, 'query'), (2, 3, 'gallery')]

    def test_errors(self, tmp_path, version):
        with pytest.raises(FileNotFoundError, match='list_gallery'):
            MSMT17(str(tmp_path), 'test', version='v1' if version == 'v2' else 'v2')
        with pytest.raises(ValueError, match="got 'v3'"):
            MSMT17(str(tmp_path), 'test', version='v3')
        write_lists(tmp_path, list_query=['0002/0002_000_03_0_0_0.jpg two'])
        with pytest.raises(ValueError, match=r"list_query\.txt.*got 'two'"):
            MSMT17(str(tmp_path), 'query', version=version)
        write_lists(tmp_path, list_query=['0002/portrait.jpg 2'])
        with pytest.raises(ValueError, match=r'portrait\.jpg.*third field'):
            MSMT17(str(tmp_path), 'query', version=version)
        write_lists(tmp_path, list_query=['0002/0002_000_16_0_0_0.jpg 2'])
        with pytest.raises(ValueError, match='camera 16'):
            MSMT17(str(tmp_path), 'query', version=version)
        write_lists(tmp_path, list_query=[f'{self.query} 2', self.query])
        with pytest.raises(ValueError, match=r'list_query\.txt, line 2'):
            MSMT17(str(tmp_path), 'query', version=version)


def test_veri776(tmp_path):
    write_images(
        tmp_path,
        'image_train/0001_c001_00016450_0.jpg',
        'image_train/0006_c020_00016450_0.jpg',
        'image_query/0002_c002_00030600_0.jpg',
        'image_test/0002_c003_00030600_0.jpg',
    )
    expected = [(1, 0, 'train'), (6, 19, 'train')]
    assert triples(VeRi776(str(tmp_path), 'train')) == expected
    assert VeRi776(str(tmp_path), 'train').metainfo['num_views'] == 0

    write_lists(tmp_path, views=['VeRi/image_train/0001_c001_00016450_0.jpg 12 -1 33 5'])
    dataset = VeRi776(str(tmp_path), 'train', view_files='views.txt')
    assert triples(dataset) == expected, 'images without a view label stay'
    assert [dataset.get_data_info(index)['view_id'] for index in range(2)] == [5, -1]
    assert dataset.metainfo['num_views'] == 6
    assert triples(VeRi776(str(tmp_path), 'test')) == [(2, 1, 'query'), (2, 2, 'gallery')]
    with pytest.raises(FileNotFoundError, match=r'nothing\.txt'):
        VeRi776(str(tmp_path), 'train', view_files=['nothing.txt'])


class TestVehicleID:
    @pytest.fixture
    def root(self, tmp_path):
        write_images(tmp_path / 'image', *(f'{index:07d}.jpg' for index in range(14)))
        write_lists(
            tmp_path / 'train_test_split',
            train_list=['0000001 9', '0000000 4'],
            test_list_800=[f'{index:07d} {index // 4}' for index in range(2, 14)],
        )
        return str(tmp_path)

    def test_train(self, root):
        dataset = VehicleID(root, 'train', corrupt='skip')
        assert triples(dataset) == [(4, -1, 'train'), (9, -1, 'train')]
        assert dataset.metainfo['num_cameras'] == 0

    def test_gallery_is_one_random_image_of_each_vehicle(self, root):
        drawn = set()
        for seed in range(5):
            queries, gallery = (
                VehicleID(root, part, split_seed=seed, serialize_data=False, corrupt='skip')
                for part in ('query', 'gallery')
            )
            assert [sample['identity'] for sample in gallery] == [0, 1, 2, 3]
            paths = [sample['img_path'] for dataset in (queries, gallery) for sample in dataset]
            assert len(set(paths)) == len(paths) == 12
            drawn.add(tuple(sample['img_path'] for sample in gallery))
            again = VehicleID(root, 'gallery', split_seed=seed, serialize_data=False)
            assert [s['img_path'] for s in again] == [s['img_path'] for s in gallery]
        assert len(drawn) > 1

    def test_errors(self, root):
        with pytest.raises(ValueError, match='got 100'):
            VehicleID(root, 'test', test_size=100)
        with pytest.raises(FileNotFoundError, match='test_list_1600'):
            VehicleID(root, 'test', test_size=1600)


class TestVERIWild:
    @pytest.fixture
    def root(self, tmp_path):
        names = ('00001/000001', '00002/000001', '00003/000001', '00003/000002')
        write_images(tmp_path / 'images', *(f'{name}.jpg' for name in names))
        write_lists(
            tmp_path / 'train_test_split',
            train_list=names[:2],
            test_3000_query=names[2:3],
            test_3000=[f'{names[3]}.jpg'],
            vehicle_info=[
                'id/image;Camera ID;Time;Model;Type;Color',
                *(f'{name};{camera};2018-03-10 08:00:00;;;' for camera, name in enumerate(names)),
            ],
        )
        return tmp_path

    def test_samples(self, root):
        dataset = VERIWild(str(root), 'train', corrupt='skip')
        assert triples(dataset) == [(1, 0, 'train'), (2, 1, 'train')]
        dataset = VERIWild(str(root), 'test', corrupt='skip')
        assert triples(dataset) == [(3, 2, 'query'), (3, 3, 'gallery')]

    def test_errors(self, root):
        with pytest.raises(ValueError, match="got 'tiny'"):
            VERIWild(str(root), 'test', test_size='tiny')
        with pytest.raises(FileNotFoundError, match='test_10000_query'):
            VERIWild(str(root), 'test', test_size='large')
        write_lists(root / 'train_test_split', train_list=['00009/000001'])
        with pytest.raises(ValueError, match=r'vehicle_info\.txt: no camera.*00009/000001'):
            VERIWild(str(root), 'train')
        write_lists(root / 'train_test_split', train_list=['000001'])
        with pytest.raises(ValueError, match=r"train_list\.txt.*got '000001'"):
            VERIWild(str(root), 'train')
