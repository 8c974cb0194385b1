"""Oxford Flowers 17, packed in one ``.npz`` file."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmpretrain.datasets import BaseDataset

from vitdown.registry import DATASETS

from .files import find_packed_file

_KEYS = ('jpeg', 'offsets', 'labels', 'split', 'class_names')
_SPLITS = {'train': 0, 'test': 1}


@DATASETS.register_module()
class Flowers17(BaseDataset):
    """17 kinds of flowers (Nilsback and Zisserman, CVPR 2006), 1,020 / 340 images in one file.

    Fine-grained classification for small budgets. The split is not the official one. Samples have
    ``img_bytes``, ``img_path`` (a name) and ``gt_label``, so pipelines begin with
    ``LoadReIDImage``; ``metainfo`` has ``classes``.

    Args:
        data_root: ``flowers17.npz`` or its folder.
        split: ``'train'`` or ``'test'``.
        pipeline: Transforms.
        **kwargs: Further arguments of MMEngine's ``BaseDataset``, e.g. ``indices``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Unknown split; the file has other contents.
    """

    def __init__(
        self, data_root: str, split: str = 'train', pipeline: Sequence = (), **kwargs: Any
    ) -> None:
        if split not in _SPLITS:
            raise ValueError(f"Flowers17: split must be 'train' or 'test', got {split!r}.")
        self.split = split
        super().__init__(ann_file='', data_root=data_root, pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Samples of the split, with their encoded images."""
        path = find_packed_file(self.data_root, 'flowers17*.npz', 'Flowers17')
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in _KEYS if key not in file.files]
            if missing:
                raise ValueError(f'Flowers17: {path} lacks the array(s) {", ".join(missing)}.')
            jpeg, offsets, labels, split, names = (file[key] for key in _KEYS)
        self._metainfo['classes'] = tuple(str(name) for name in names)
        return [
            dict(
                img_bytes=jpeg[offsets[index] : offsets[index + 1]].tobytes(),
                img_path=f'{names[labels[index]]}/{index:04d}',
                gt_label=int(labels[index]),
            )
            for index in np.flatnonzero(split == _SPLITS[self.split])
        ]
