"""A user's own data: tables and folders."""

import pytest

from tests.datasets.conftest import write_image, write_images
from vitdown.datasets import CSVReIDDataset, FolderReIDDataset
from vitdown.datasets.transforms import LoadReIDImage

TABLE = """\
image,identity,camera,view,subset
a.jpg,7,2,0,train
b.jpg,3,0,,train
c.jpg,9,,1,query
d.jpg,9,1,-1,gallery
e.jpg,-1,1,0,gallery
f.jpg,4,0,0,both
g.jpg,4,1,0,both
"""


def write_table(folder, text, name='table.csv'):
    path = folder / name
    path.write_text(text, encoding='utf-8')
    return str(path)


def samples_of(dataset, *keys):
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    return [tuple(info[key] for key in keys) for info in infos]


class TestCSV:
    def test_integers_are_kept(self, tmp_path):
        path = write_table(tmp_path, TABLE)
        dataset = CSVReIDDataset(path, 'train')
        assert samples_of(dataset, 'identity', 'gt_label', 'camera_id', 'view_id') == [
            (7, 1, 2, 0),
            (3, 0, 0, -1),
        ]
        dataset = CSVReIDDataset(path, 'test')
        assert samples_of(dataset, 'identity', 'camera_id', 'subset') == [
            (9, -1, 'query'),
            (9, 1, 'gallery'),
            (4, 0, 'both'),
            (4, 1, 'both'),
        ]
        assert 'identity_names' not in dataset.metainfo

    def test_names_are_numbered_over_the_whole_table(self, tmp_path):
        path = write_table(
            tmp_path,
            '﻿file;who;where;part\n'
            'a.jpg;zebra;north;query\n'
            'b.jpg;ape;south;gallery\n'
            'c.jpg;zebra;;gallery\n',
        )
        columns = dict(image='file', identity='who', camera='where', subset='part')
        for subset, expected in (
            ('query', [(1, 0)]),
            ('gallery', [(0, 1), (1, -1)]),
        ):
            dataset = CSVReIDDataset(path, subset, columns=columns, delimiter=';')
            assert samples_of(dataset, 'identity', 'camera_id') == expected
            assert dataset.metainfo['identity_names'] == ['ape', 'zebra']
            assert dataset.metainfo['camera_names'] == ['north', 'south']

    def test_without_subset_column(self, tmp_path):
        path = write_table(tmp_path, 'image,identity\na.jpg,1\nb.jpg,1\n')
        for subset, expected in (('train', 'train'), ('gallery', 'gallery'), ('test', 'both')):
            dataset = CSVReIDDataset(path, subset)
            assert samples_of(dataset, 'subset', 'camera_id') == [(expected, -1)] * 2

    def test_paths_are_relative_to_data_root_or_the_table(self, tmp_path):
        write_image(tmp_path / 'images/x/a.jpg')
        text = 'image,identity\nx/a.jpg,1\n'
        load = [LoadReIDImage()]
        path = write_table(tmp_path, text)
        dataset = CSVReIDDataset(path, 'train', data_root=str(tmp_path / 'images'), pipeline=load)
        assert dataset[0]['img'].shape == (16, 8, 3)
        write_table(tmp_path / 'images', text)
        dataset = CSVReIDDataset(
            'table.csv', 'train', data_root=str(tmp_path / 'images'), pipeline=load
        )
        assert dataset[0]['img'].shape == (16, 8, 3)
        path = write_table(tmp_path / 'images', text)
        assert CSVReIDDataset(path, 'train', pipeline=load)[0]['img'].shape == (16, 8, 3)

    @pytest.mark.parametrize(
        ('text', 'message'),
        [
            ('image,name\na,1\n', r"identity.*missing.*\['image', 'name'\]"),
            ('', r'identity.*missing'),
            ('image,identity\na.jpg,1\n,2\n', r"line 3, column 'image': is empty"),
            ('image,identity\na.jpg\n', r"line 2, column 'identity': is empty"),
            ('image,identity\na.jpg,1,2\n', r'line 2: more fields'),
            ('image,identity\na.jpg,-2\n', r"line 2, column 'identity'.*-2"),
            ('image,identity,camera\na.jpg,1,-3\n', r"line 2, column 'camera'.*-3"),
            ('image,identity,subset\na.jpg,1,val\n', r"line 2, column 'subset'.*'val'"),
            ('image,identity\n"a.jpg"x,1\n', r'after line 1: not valid CSV'),
            ('image,identity\n', r'no train images'),
        ],
    )
    def test_bad_tables(self, tmp_path, text, message):
        path = write_table(tmp_path, text)
        with pytest.raises(ValueError, match=message) as error:
            CSVReIDDataset(path, 'train')
        assert path in str(error.value)

    def test_other_errors(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r'nothing\.csv'):
            CSVReIDDataset(str(tmp_path / 'nothing.csv'), 'train')
        path = write_table(tmp_path, 'image,identity\na.jpg,1\n')
        with pytest.raises(ValueError, match="'cam'.*known are"):
            CSVReIDDataset(path, 'train', columns=dict(cam='c'))
        with pytest.raises(ValueError, match=r"\['c'\] missing"):
            CSVReIDDataset(path, 'train', columns=dict(camera='c'))


class TestFolders:
    @pytest.fixture
    def root(self, tmp_path):
        write_images(
            tmp_path,
            'train/rex/north-1.jpg',
            'train/bo/south-1.png',
            'query/ada/north-1.jpg',
            'gallery/ada/south-1.jpg',
            'gallery/zoe/north-1.jpg',
        )
        (tmp_path / 'train/notes.txt').write_text('not an identity')
        return str(tmp_path)

    def test_names_are_identities(self, root):
        dataset = FolderReIDDataset(root, 'train')
        assert dataset.metainfo['identity_names'] == ['ada', 'bo', 'rex', 'zoe']
        assert samples_of(dataset, 'identity', 'gt_label', 'camera_id') == [(1, 0, -1), (2, 1, -1)]
        assert samples_of(FolderReIDDataset(root, 'test'), 'identity', 'subset') == [
            (0, 'query'),
            (0, 'gallery'),
            (3, 'gallery'),
        ]

    def test_cameras_by_pattern(self, root):
        dataset = FolderReIDDataset(root, 'test', camera_pattern=r'^(\w+)-')
        assert [camera for (camera,) in samples_of(dataset, 'camera_id')] == [0, 1, 0]
        assert dataset.metainfo['camera_names'] == ['north', 'south']
        dataset = FolderReIDDataset(root, 'test', camera_pattern=r'-(\d+)')
        assert [camera for (camera,) in samples_of(dataset, 'camera_id')] == [1, 1, 1]

    def test_integer_folders_keep_their_number(self, tmp_path):
        write_images(tmp_path, 'train/0012/a.jpg', 'train/7/a.jpg')
        dataset = FolderReIDDataset(str(tmp_path), 'train')
        assert sorted(samples_of(dataset, 'identity', 'gt_label')) == [(7, 0), (12, 1)]

    def test_errors(self, root):
        with pytest.raises(ValueError, match=r'south-1\.png.*camera_pattern'):
            FolderReIDDataset(root, 'test', camera_pattern=r'cam(\d)')
        with pytest.raises(ValueError, match='exactly one group'):
            FolderReIDDataset(root, 'test', camera_pattern=r'cam\d')
        with pytest.raises(FileNotFoundError, match='train/<identity>/<image>'):
            FolderReIDDataset(root + '/query', 'train')
