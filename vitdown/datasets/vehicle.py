"""Vehicle re-identification benchmarks."""

import os.path as osp
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vitdown.registry import DATASETS

from .base import UNKNOWN, ReIDDataset, Sample
from .file_name_dataset import FileNameReIDDataset
from .files import read_table, to_int


@DATASETS.register_module()
class VeRi776(FileNameReIDDataset):
    """VeRi-776 (Liu et al., "Large-scale Vehicle Re-identification ...", ICME 2016).

    576 / 200 vehicles for training and testing, 20 cameras. Files are named like
    ``0001_c001_00016450_0.jpg``. Releases differ slightly: some have 37,746 training images.

    Args:
        data_root: Folder of the dataset.
        subset: See :class:`ReIDDataset`.
        view_files: Text file(s) with view labels, absolute or relative to ``data_root``. The first
            field of a line is the image's name (folders in front of it are ignored), the last one
            its view, an integer from 0. Images that are not listed have an unknown view (-1).
        **kwargs: Further arguments of :class:`ReIDDataset`.
    """

    layout = """\
    image_train/*.jpg
    image_query/*.jpg
    image_test/*.jpg"""
    folders = {'train': 'image_train', 'query': 'image_query', 'gallery': 'image_test'}
    pattern = r'(-?\d+)_c(\d+)'
    published = {
        'train': (576, 37778, 20),
        'query': (200, 1678, None),
        'gallery': (200, 11579, None),
    }
    num_cameras = 20

    def __init__(
        self, data_root: str, subset: str, view_files: str | Sequence[str] = (), **kwargs: Any
    ) -> None:
        self.view_files = [view_files] if isinstance(view_files, str) else list(view_files)
        super().__init__(data_root, subset, **kwargs)

    def scan(self, part: str) -> Iterator[Sample]:
        views = {}
        for view_file in self.view_files:
            path = self.path_to(view_file)
            for name, *_, view in read_table(path, min_fields=2):
                views[osp.basename(name)] = to_int(view, f'view of {name}', path)
        for sample in super().scan(part):
            name = osp.basename(sample['img_path'])
            yield {**sample, 'view_id': views.get(name, UNKNOWN)}


@DATASETS.register_module()
class VehicleID(ReIDDataset):
    """VehicleID (Liu et al., "Deep Relative Distance Learning ...", CVPR 2016).

    13,164 vehicles for training; test lists of several sizes. Cameras are unknown. By the usual
    protocol one random image of each test vehicle is the gallery and all others are queries;
    figures are commonly averaged over several draws: ``ReIDMetric(protocol='vehicleid')`` makes
    ten and reports their mean, whatever ``split_seed`` drew.

    Args:
        data_root: Folder of the dataset.
        subset: See :class:`ReIDDataset`.
        test_size: Number of test vehicles: 800, 1600, 2400, 3200, 6000 or 13164.
        split_seed: Seed of the draw of the gallery.
        **kwargs: Further arguments of :class:`ReIDDataset`.
    """

    _test_sizes = (800, 1600, 2400, 3200, 6000, 13164)

    def __init__(
        self, data_root: str, subset: str, test_size: int = 800, split_seed: int = 0, **kwargs: Any
    ) -> None:
        if test_size not in self._test_sizes:
            raise ValueError(
                f'VehicleID: test_size must be one of {self._test_sizes}, got {test_size!r}.'
            )
        self.test_size = test_size
        self.split_seed = split_seed
        # Counts of images differ between the paper and the lists that are distributed.
        self.published = {
            'train': (13164, None, None),
            'query': (test_size, None, None),
            'gallery': (test_size, test_size, None),
        }
        self.layout = f"""\
    image/*.jpg
    train_test_split/train_list.txt
    train_test_split/test_list_{test_size}.txt"""
        super().__init__(data_root, subset, **kwargs)

    def scan(self, part: str) -> Iterator[Sample]:
        list_name = 'train_list' if part == 'train' else f'test_list_{self.test_size}'
        list_path = self.path_to('train_test_split', f'{list_name}.txt')
        folder = self.path_to('image')
        images = defaultdict(list)
        for name, number, *_ in read_table(list_path, min_fields=2):
            images[to_int(number, f'vehicle of {name}', list_path)].append(_with_suffix(name))

        rng = np.random.default_rng(self.split_seed)
        for identity in sorted(images):
            names = sorted(images[identity])
            if part != 'train':
                drawn = names.pop(int(rng.integers(len(names))))
                names = names if part == 'query' else [drawn]
            for name in names:
                yield {'img_path': osp.join(folder, name), 'identity': identity}


@DATASETS.register_module()
class VERIWild(ReIDDataset):
    """VERI-Wild (Lou et al., "VERI-Wild: A Large Dataset and a New Method ...", CVPR 2019).

    30,671 vehicles for training, three test sets. ``camera_id`` is the number that
    ``vehicle_info.txt`` gives.

    Args:
        data_root: Folder of the dataset.
        subset: See :class:`ReIDDataset`.
        test_size: ``'small'`` (3,000 vehicles), ``'medium'`` (5,000) or ``'large'`` (10,000).
        **kwargs: Further arguments of :class:`ReIDDataset`.
    """

    _num_vehicles = {'small': 3000, 'medium': 5000, 'large': 10000}
    _gallery_images = {'small': 38861, 'medium': 64389, 'large': 128517}

    def __init__(
        self, data_root: str, subset: str, test_size: str = 'small', **kwargs: Any
    ) -> None:
        if test_size not in self._num_vehicles:
            raise ValueError(
                f'VERIWild: test_size must be one of {list(self._num_vehicles)}, got {test_size!r}.'
            )
        vehicles = self._num_vehicles[test_size]
        self._lists = {
            'train': 'train_list.txt',
            'query': f'test_{vehicles}_query.txt',
            'gallery': f'test_{vehicles}.txt',
        }
        self.published = {
            'train': (30671, 277797, None),
            'query': (vehicles, vehicles, None),
            'gallery': (vehicles, self._gallery_images[test_size], None),
        }
        names = (*self._lists.values(), 'vehicle_info.txt')
        self.layout = '\n'.join(
            ['    images/<vehicle>/*.jpg', *(f'    train_test_split/{name}' for name in names)]
        )
        super().__init__(data_root, subset, **kwargs)

    def scan(self, part: str) -> Iterator[Sample]:
        folder = self.path_to('images')
        list_path = self.path_to('train_test_split', self._lists[part])
        info_path = self.path_to('train_test_split', 'vehicle_info.txt')
        cameras = {
            osp.splitext(name)[0]: camera
            for name, camera, *_ in read_table(info_path, min_fields=2, separator=';')
        }
        for name, *_ in read_table(list_path, min_fields=1):
            vehicle, *rest = name.split('/')
            if not rest:
                raise ValueError(f"{list_path}: expected '<vehicle>/<image>', got {name!r}.")
            key = osp.splitext(name)[0]
            if key not in cameras:
                raise ValueError(f'{info_path}: no camera is given for {name}.')
            yield {
                'img_path': osp.join(folder, vehicle, _with_suffix(rest[-1])),
                'identity': to_int(vehicle, f'vehicle of {name}', list_path),
                'camera_id': to_int(cameras[key], f'camera of {name}', info_path),
            }


def _with_suffix(name: str) -> str:
    """The lists of these datasets name images without their suffix."""
    return name if osp.splitext(name)[1] else f'{name}.jpg'
