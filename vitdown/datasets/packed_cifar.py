"""CIFAR subsets that come packed in one ``.npz`` file."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmpretrain.datasets import BaseDataset
from PIL import Image

from vitdown.registry import DATASETS

from .files import find_packed_file

_SIZE = 32


@DATASETS.register_module()
class PackedCIFAR(BaseDataset):
    """A subset of CIFAR-10 or CIFAR-100 for classification, in one ``.npz`` file.

    The file holds ``class_names`` and, for each split, ``<split>_labels`` and
    ``<split>_images_00``, ``_01`` ...: lossless pictures in which 32 x 32 images lie side by side,
    row by row. Samples have ``img`` ((32, 32, 3) uint8, BGR) and ``gt_label``; ``metainfo`` has
    ``classes``.

    Args:
        data_root: The file, or the folder that contains it (``cifar*.npz``).
        split: ``'train'`` or ``'test'``.
        pipeline: Transforms; there is no file to load.
        **kwargs: Further arguments of MMEngine's ``BaseDataset``, e.g. ``indices``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Unknown split; the file has other contents.
    """

    def __init__(
        self, data_root: str, split: str = 'train', pipeline: Sequence = (), **kwargs: Any
    ) -> None:
        if split not in ('train', 'test'):
            raise ValueError(f"PackedCIFAR: split must be 'train' or 'test', got {split!r}.")
        self.split = split
        super().__init__(ann_file='', data_root=data_root, pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Unpack the images of the split."""
        path = find_packed_file(self.data_root, 'cifar*.npz', 'PackedCIFAR')
        with np.load(path, allow_pickle=False) as file:
            keys = sorted(key for key in file.files if key.startswith(f'{self.split}_images_'))
            if not keys or not {f'{self.split}_labels', 'class_names'} <= set(file.files):
                raise ValueError(
                    f'PackedCIFAR: {path} lacks {self.split}_images_00, {self.split}_labels or '
                    f'class_names; it has {", ".join(file.files)}.'
                )
            labels = file[f'{self.split}_labels']
            images = np.concatenate([_unpack(file[key]) for key in keys])
            self._metainfo['classes'] = tuple(str(name) for name in file['class_names'])
        if len(images) != len(labels):
            raise ValueError(f'PackedCIFAR: {path}: {len(images)} images, {len(labels)} labels.')
        return [dict(img=image, gt_label=int(label)) for image, label in zip(images, labels)]


def _unpack(data: np.ndarray) -> np.ndarray:
    """Images (N, 32, 32, 3) BGR of an encoded picture."""
    with Image.open(io.BytesIO(data.tobytes())) as picture:
        bgr = np.asarray(picture.convert('RGB'))[..., ::-1]
    rows, columns = bgr.shape[0] // _SIZE, bgr.shape[1] // _SIZE
    tiles = bgr.reshape(rows, _SIZE, columns, _SIZE, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles).reshape(-1, _SIZE, _SIZE, 3)
