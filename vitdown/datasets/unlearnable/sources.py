"""Where images to protect come from: folders of classes, or any of the datasets."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmpretrain.datasets import BaseDataset

from vitdown.registry import DATASETS

from ..base import UNKNOWN, ReIDDataset
from ..files import IMAGE_SUFFIXES
from ..synthetic_reid import SyntheticReID
from ..transforms.decoding import decode_image, read_bytes, to_bgr_uint8
from .protect import all_files
from .settings import ProtectionError, SourceImage

# Options of datasets that change no image
_FIXED_OPTIONS = (
    'metainfo', 'classes', 'data_prefix', 'filter_cfg', 'serialize_data', 'test_mode', 'lazy_init',
    'max_refetch',
)  # fmt: skip


def class_folder_images(source: str | os.PathLike) -> tuple[list[SourceImage], list[str]]:
    """Images of ``<source>/<class>/**/<image>``, classes in sorted order.

    Returns:
        The images, sorted by class and path, and the names of files that were left out because
        they are no images, links that lead nowhere or lie in no class folder.

    Raises:
        ProtectionError: There is no such folder, or a class has no images.
        OSError: A folder can't be read.
    """
    source = Path(source)
    if not source.is_dir():
        raise ProtectionError(f'The source {source} is no folder.')
    folders = sorted(path for path in source.iterdir() if path.is_dir())
    others = [path.name for path in source.iterdir() if not path.is_dir()]
    images = []
    for label, folder in enumerate(folders):
        files = all_files(folder)
        found = [path for path in files if _is_image(path)]
        if not found:
            raise ProtectionError(
                f'The class folder {folder} has no images ({", ".join(IMAGE_SUFFIXES)}). Remove '
                'it: it would count as a class and shift the filters of all after it.'
            )
        others += [path.relative_to(source).as_posix() for path in files if not _is_image(path)]
        images += [
            SourceImage(
                path.relative_to(source).as_posix(),
                label,
                folder.name,
                _file_reader(str(path)),
                path=str(path),
            )
            for path in found
        ]
    if not images:
        raise ProtectionError(
            f'{source} has no class folders: it must hold one folder of images a class. For re-ID '
            'sets in other layouts, name the type of the dataset.'
        )
    return images, others


def dataset_images(
    dataset_type: str, source: str | os.PathLike, options: Mapping[str, Any] | None = None
) -> tuple[list[SourceImage], int]:
    """Training images of a dataset for re-ID or classification; nothing is written.

    In re-ID, identities are the classes, in sorted order. Images of a classification set that have
    no names are called ``<class>/<index>``.

    Args:
        dataset_type: A type of vitdown's datasets, e.g. ``'Market1501'`` or ``'PackedCIFAR'``.
        source: Its ``data_root``.
        options: Further arguments of it, e.g. ``ann_file``.

    Returns:
        The images, and the number of classes of the whole dataset.

    Raises:
        ProtectionError: There is no such type, it is one of detection or segmentation, an option is
            not free, or ``indices`` lead to no images.
    """
    kind = DATASETS.get(dataset_type)
    if kind is None or '.' in dataset_type:
        raise ProtectionError(f'vitdown has no dataset type {dataset_type!r}.')
    is_reid = issubclass(kind, ReIDDataset)
    if not is_reid and not issubclass(kind, BaseDataset):
        raise ProtectionError(
            f'{dataset_type} is no dataset of re-ID or classification; filters belong to '
            'identities or image classes.'
        )
    fixed: dict[str, Any] = dict(type=dataset_type, data_root=str(source), pipeline=[])
    fixed['subset' if is_reid else 'split'] = 'train'
    if issubclass(kind, SyntheticReID):
        fixed['draw'] = False
    options = options or {}
    if taken := sorted({*fixed, *_FIXED_OPTIONS} & options.keys()):
        raise ProtectionError(
            f'The dataset option(s) {", ".join(taken)} cannot be chosen: the training images of '
            'the source that is named are protected, as they are stored. Leave them out.'
        )
    try:
        dataset = DATASETS.build({**options, **fixed})
        len(dataset)  # some read their samples only now
    except (IndexError, TypeError, ValueError) as error:
        if 'indices' not in options:
            raise
        raise ProtectionError(
            f'{dataset_type} has no images at indices={options["indices"]!r}, which must be a '
            f'number of images, or a list of their places: {error}.'
        ) from error
    if is_reid:
        return _reid_images(dataset), dataset.metainfo['num_identities']
    return _classification_images(dataset), len(dataset.metainfo['classes'])


def check_apart(
    images: Sequence[SourceImage], source: str | os.PathLike, output: str | os.PathLike
) -> None:
    """Refuse an output within a folder of originals, or around one, also by way of links.

    Files may be links, too: then the folder of what they lead to has the originals.

    Raises:
        ProtectionError: It lies there.
    """
    root, place = Path(os.path.abspath(source)), Path(output).resolve()
    files = [Path(os.path.abspath(image.path)) for image in images if image.path]
    folders = {file.parent for file in files}
    folders |= {parent for folder in folders if folder.is_relative_to(root)
                for parent in folder.parents if parent.is_relative_to(root)}  # fmt: skip
    originals = {folder.resolve() for folder in folders} | {file.resolve().parent for file in files}
    for real in sorted(originals):
        if place.is_relative_to(real) or real.is_relative_to(place):
            raise ProtectionError(
                f'{output} and {real}, which has originals, lie in one another; name an output '
                'folder elsewhere, so that the originals stay as they are.'
            )


def images_elsewhere(images: Sequence[SourceImage], source: str | os.PathLike) -> list[str]:
    """Names of the images whose files lie outside of the source: their whole paths."""
    root = os.path.abspath(source)
    return [
        image.name
        for image in images
        if image.path and not Path(os.path.abspath(image.path)).is_relative_to(root)
    ]


def _classification_images(dataset: BaseDataset) -> list[SourceImage]:
    images = []
    for index, label in enumerate(dataset.get_gt_labels().tolist()):
        name = dataset.metainfo['classes'][label]
        path = dataset.get_data_info(index).get('img_path') or f'{name}/{index:06d}'
        images.append(
            SourceImage(
                _name(path, dataset.data_root),
                label,
                name,
                _sample_reader(dataset, index, path),
                path=_file(path),
            )
        )
    return images


def _reid_images(dataset: ReIDDataset) -> list[SourceImage]:
    number, metainfo = len(dataset), dataset.metainfo
    names = {key: metainfo.get(f'{key}_names') for key in ('identity', 'camera', 'view')}
    images = []
    for index in range(number):
        sample = dataset.annotation(index)
        images.append(
            SourceImage(
                _name(sample['img_path'], dataset.data_root),
                sample['gt_label'],
                _original(sample['identity'], names['identity']),
                _sample_reader(dataset, index, sample['img_path']),
                _original(sample['camera_id'], names['camera']),
                _original(sample['view_id'], names['view']),
                _file(sample['img_path']),
            )
        )
    return images


def _original(number: int, names: Sequence[str] | None) -> int | str:
    """What a dataset's number stands for: itself, or a name, which is empty if unknown."""
    if names is None:
        return number
    return '' if number == UNKNOWN else names[number]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _name(path: str, root: str) -> str:
    """Path below the root; images from elsewhere keep their path without its beginning."""
    try:
        return Path(os.path.abspath(path)).relative_to(os.path.abspath(root)).as_posix()
    except ValueError:
        path = os.path.normpath(path)
        parts = [part for part in Path(path).parts if part not in ('..', Path(path).anchor)]
        return Path(*parts).as_posix()


def _file(path: str) -> str | None:
    """The path, unless it is but the name of an image within a larger file."""
    return path if os.path.isfile(path) else None


def _file_reader(path: str) -> Callable[[], np.ndarray]:
    return lambda: decode_image(read_bytes(path), path)


def _sample_reader(dataset: BaseDataset, index: int, path: str) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        sample = dataset.get_data_info(index)
        if 'img' in sample:
            return to_bgr_uint8(sample['img'], path)
        data = sample.get('img_bytes')
        if data is None:
            data = read_bytes(path)
        return decode_image(data, path)

    return read
