"""Small datasets that come packed in one ``.npz`` file."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vitdown.registry import DATASETS

from .base import ReIDDataset, Sample
from .files import find_packed_file

_TRAIN, _TEST = 0, 1


class PackedReIDDataset(ReIDDataset):
    """Base of datasets in one ``.npz`` file.

    By their protocol every test image is a query, and its gallery are the other test images
    (subset ``'both'``). Images stay in the arrays of the file, which worker processes share, and
    join a sample when it is asked for.

    Args:
        data_root: The ``.npz`` file, or the folder that contains it.
        subset: ``'train'`` or ``'test'``.
        **kwargs: Further arguments of :class:`ReIDDataset`.
    """

    parts = {'train': ('train',), 'test': ('both',)}
    #: Name of the file, ``*`` standing for anything, and the arrays that it must hold.
    file_pattern: str
    keys: tuple[str, ...]

    def __init__(self, data_root: str, subset: str, **kwargs: Any) -> None:
        self.layout = f'    {self.file_pattern} (arrays: {", ".join(self.keys)})'
        super().__init__(data_root, subset, **kwargs)

    def load_data_list(self) -> list[Sample]:
        self.arrays = self._load_arrays()
        return super().load_data_list()

    def scan(self, part: str) -> Iterator[Sample]:
        split = _TRAIN if part == 'train' else _TEST
        for index in np.flatnonzero(self.arrays['split'] == split):
            yield {**self.describe(int(index)), 'pack_index': int(index)}

    def describe(self, index: int) -> Sample:
        """Sample of the index-th image of the file, without the image."""
        raise NotImplementedError

    def image(self, index: int) -> Sample:
        """``img`` or ``img_bytes`` of the index-th image of the file."""
        raise NotImplementedError

    def get_data_info(self, idx: int) -> Sample:
        info = super().get_data_info(idx)
        return {**info, **self.image(info['pack_index'])}

    def check_image(self, sample: Sample) -> None:
        super().check_image({**sample, **self.image(sample['pack_index'])})

    def _load_arrays(self) -> Mapping[str, np.ndarray]:
        name = type(self).__name__
        path = find_packed_file(self.data_root, self.file_pattern, name)
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in self.keys if key not in file.files]
            if missing:
                raise ValueError(
                    f'{name}: {path} lacks the array(s) {", ".join(missing)}; it has '
                    f'{", ".join(file.files)}.'
                )
            return {key: file[key] for key in self.keys}


@DATASETS.register_module()
class Omniglot(PackedReIDDataset):
    """Handwritten characters as identities (Lake et al., Science 2015), eight alphabets.

    137 / 105 characters of different alphabets for training and testing, each drawn once by 20
    drawers; grey images of 64 x 64 pixels. ``camera_id`` is the drawer's number. Drawer n of one
    alphabet need not be the person who is drawer n of another: that does not matter for the
    protocol, which compares cameras only within an identity, and so within an alphabet, but the
    numbers are of no use as the input of a camera embedding. A character is drawn once by each
    drawer, so no gallery image is ever removed.

    Args:
        data_root: ``omniglot8.npz`` or its folder.
        subset: ``'train'`` or ``'test'``.
        **kwargs: Further arguments of :class:`ReIDDataset`.
    """

    file_pattern = 'omniglot*.npz'
    keys = (
        'images',
        'identity',
        'drawer',
        'alphabet',
        'alphabet_names',
        'split',
        'character_number',
    )
    published = {'train': (137, 2740, 20), 'both': (105, 2100, 20)}

    def describe(self, index: int) -> Sample:
        arrays = self.arrays
        alphabet = arrays['alphabet_names'][arrays['alphabet'][index]]
        drawer = int(arrays['drawer'][index])
        identity = int(arrays['identity'][index])
        return {
            'img_path': f'{alphabet}/character{identity:04d}/drawer{drawer:02d}',
            'identity': identity,
            'camera_id': drawer,
        }

    def image(self, index: int) -> Sample:
        return {'img': np.repeat(self.arrays['images'][index][..., None], 3, axis=2)}


@DATASETS.register_module()
class Nyala(PackedReIDDataset):
    """Individual nyala antelopes (Dlamini and van Zyl, 2020).

    179 / 58 individuals for training and testing. ``camera_id`` is the sighting (one encounter,
    with at most one photograph of each flank), so the protocol takes the query's own encounter
    out of its gallery; ``view_id`` is the flank, 0 left and 1 right. The coat pattern differs
    between the flanks, so retrieval within one flank is worth reporting apart.

    Args:
        data_root: ``nyala.npz`` or its folder.
        subset: ``'train'`` or ``'test'``.
        view: ``'left'`` or ``'right'`` takes the photographs of this flank only; None all.
        **kwargs: Further arguments of :class:`ReIDDataset`.
    """

    file_pattern = 'nyala*.npz'
    keys = ('jpeg', 'offsets', 'identity', 'sighting', 'view', 'split', 'names')
    _flanks = {'left': 0, 'right': 1}

    def __init__(self, data_root: str, subset: str, view: str | None = None, **kwargs: Any) -> None:
        if view is not None and view not in self._flanks:
            raise ValueError(f"Nyala: view must be 'left', 'right' or None, got {view!r}.")
        self.view = view
        if view is None:
            self.published = {'train': (179, 1205, 617), 'both': (58, 729, 379)}
        super().__init__(data_root, subset, **kwargs)

    def scan(self, part: str) -> Iterator[Sample]:
        wanted = None if self.view is None else self._flanks[self.view]
        for sample in super().scan(part):
            if wanted is None or sample['view_id'] == wanted:
                yield sample

    def describe(self, index: int) -> Sample:
        arrays = self.arrays
        return {
            'img_path': str(arrays['names'][index]),
            'identity': int(arrays['identity'][index]),
            'camera_id': int(arrays['sighting'][index]),
            'view_id': int(arrays['view'][index]),
        }

    def image(self, index: int) -> Sample:
        start, end = self.arrays['offsets'][index : index + 2]
        return {'img_bytes': self.arrays['jpeg'][start:end].tobytes()}
