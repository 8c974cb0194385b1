"""A user's own images: from a table, or from folders."""

import csv
import os
import os.path as osp
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vitdown.registry import DATASETS

from .base import JUNK_IDENTITY, UNKNOWN, ReIDDataset, Sample
from .files import list_images

_DEFAULT_COLUMNS = {
    'image': 'image',
    'identity': 'identity',
    'camera': 'camera',
    'view': 'view',
    'subset': 'subset',
}
_SUBSETS = ('train', 'query', 'gallery', 'both')
_TEST_PARTS = {
    'train': ('train',),
    'query': ('query',),
    'gallery': ('gallery',),
    'test': ('query', 'gallery', 'both'),
}


def enumerate_names(names: Sequence[str]) -> tuple[list[int], list[str] | None]:
    """Numbers for names: their own value if all are integers, else their place in sorted order.

    Returns:
        The number of each name, and the sorted distinct names (None if they were integers).
    """
    if all(re.fullmatch(r'[+-]?\d+', name) for name in names):
        return [int(name) for name in names], None
    distinct = sorted(set(names))
    numbers = {name: number for number, name in enumerate(distinct)}
    return [numbers[name] for name in names], distinct


@DATASETS.register_module()
class CSVReIDDataset(ReIDDataset):
    """Re-ID data described by a table, one image a row.

    ======== ======== =====================================================================
    column   required content
    ======== ======== =====================================================================
    image    yes      path of the image, absolute or relative to ``data_root``
    identity yes      integer (-1: junk, left out) or name
    camera   no       integer from 0, or name; empty or -1: unknown
    view     no       integer from 0, or name; empty or -1: unknown
    subset   no       train, query, gallery, or both (a query that is in the gallery of the
                      other queries); without this column all rows belong to ``subset``,
                      and with ``subset='test'`` to both
    ======== ======== =====================================================================

    Names are numbered in sorted order over the whole table, so that query and gallery agree; the
    sorted names are kept in ``metainfo`` as ``identity_names``, ``camera_names``, ``view_names``.

    Args:
        ann_file: The table, with a header line; UTF-8. Absolute or relative to ``data_root``.
        subset: ``'train'``, ``'query'``, ``'gallery'`` or ``'test'``.
        data_root: Folder that the paths are relative to; by default the table's folder.
        columns: Names of the columns, where they differ from those above.
        delimiter: Character between the fields.
        **kwargs: Further arguments of :class:`ReIDDataset`.

    Raises:
        ValueError: A column is missing or a cell is invalid; the message names file, line, column.
    """

    parts = _TEST_PARTS
    layout = '    a table with the columns image, identity and optionally camera, view, subset'

    def __init__(
        self,
        ann_file: str,
        subset: str,
        data_root: str = '',
        columns: Mapping[str, str] | None = None,
        delimiter: str = ',',
        **kwargs: Any,
    ) -> None:
        unknown = set(columns or ()) - set(_DEFAULT_COLUMNS)
        if unknown:
            raise ValueError(
                f'CSVReIDDataset: unknown key(s) {sorted(unknown)} in columns; known are '
                f'{list(_DEFAULT_COLUMNS)}.'
            )
        self.columns = {**_DEFAULT_COLUMNS, **(columns or {})}
        self._required = {'image', 'identity', *(columns or {})}
        self.delimiter = delimiter
        self._rows: list[Sample] | None = None
        super().__init__(data_root, subset, ann_file=osp.expanduser(ann_file), **kwargs)

    def scan(self, part: str) -> list[Sample]:
        # One pass over the table serves all parts of a subset.
        samples = self._read()
        return [sample for sample in samples if sample['subset'] == part]

    def load_data_list(self) -> list[Sample]:
        try:
            return super().load_data_list()
        finally:
            self._rows = None

    def _read(self) -> list[Sample]:
        if self._rows is None:
            self._rows = self._parse()
        return self._rows

    def _parse(self) -> list[Sample]:
        if not osp.isfile(self.ann_file):
            raise FileNotFoundError(
                f'CSVReIDDataset: {self.ann_file!r} does not exist. Set ann_file to a table with '
                'the columns image, identity and optionally camera, view, subset; a relative path '
                'is looked up in data_root.'
            )
        with open(self.ann_file, encoding='utf-8-sig', newline='') as file:
            reader = csv.DictReader(file, delimiter=self.delimiter, restval='', strict=True)
            present = self._present_columns(reader.fieldnames or [])
            rows = []
            try:
                for row in reader:
                    where = f'{self.ann_file}, line {reader.line_num}'
                    rows.append((where, self._cells(row, present, where)))
            except csv.Error as error:
                where = f'{self.ann_file}, after line {reader.line_num}'
                raise ValueError(f'{where}: not valid CSV: {error}.') from error
        return self._to_samples(rows)

    def _present_columns(self, header: Sequence[str]) -> list[str]:
        missing = [self.columns[key] for key in self._required if self.columns[key] not in header]
        if missing:
            raise ValueError(
                f'{self.ann_file}: column(s) {sorted(missing)} missing; the table has '
                f'{list(header)}. Name the columns with columns=dict(image=..., identity=...), or '
                'set the delimiter.'
            )
        return [key for key, column in self.columns.items() if column in header]

    def _cells(self, row: Mapping, present: Sequence[str], where: str) -> dict[str, str]:
        if None in row:
            raise ValueError(f'{where}: more fields than the header has columns.')
        cells = {key: row[self.columns[key]].strip() for key in present}
        for key in ('image', 'identity'):
            if not cells[key]:
                raise ValueError(f"{where}, column '{self.columns[key]}': is empty.")
        subset = cells.setdefault(
            'subset', 'train' if self.subset == 'train' else self._only_part()
        )
        if subset not in _SUBSETS:
            raise ValueError(
                f"{where}, column '{self.columns['subset']}': must be one of {_SUBSETS}, "
                f'got {subset!r}.'
            )
        return cells

    def _only_part(self) -> str:
        """Part of all rows of a table that doesn't say."""
        return 'both' if self.subset == 'test' else self.subset

    def _to_samples(self, rows: Sequence[tuple[str, dict[str, str]]]) -> list[Sample]:
        folder = self.data_root or osp.dirname(self.ann_file)
        samples: list[Sample] = [
            {'img_path': osp.join(folder, cells['image']), 'subset': cells['subset']}
            for _, cells in rows
        ]
        for key, field in (('identity', 'identity'), ('camera', 'camera_id'), ('view', 'view_id')):
            known = [index for index, (_, cells) in enumerate(rows) if cells.get(key)]
            numbers, names = enumerate_names([rows[index][1][key] for index in known])
            if names is not None:
                self._metainfo[f'{key}_names'] = names
            for index, number in zip(known, numbers):
                if number < min(JUNK_IDENTITY, UNKNOWN):
                    raise ValueError(
                        f"{rows[index][0]}, column '{self.columns[key]}': numbers must not be "
                        f'below -1, got {number}.'
                    )
                samples[index][field] = number
        return samples


@DATASETS.register_module()
class FolderReIDDataset(ReIDDataset):
    """Re-ID data in folders: ``<data_root>/<train | query | gallery>/<identity>/<image>``.

    Names of folders are identities; unless all are integers, they are numbered in sorted order
    over all subsets, so that query and gallery agree, and kept in ``metainfo`` as
    ``identity_names``.

    Args:
        data_root: Folder with ``train``, ``query`` and ``gallery``.
        subset: ``'train'``, ``'query'``, ``'gallery'`` or ``'test'``.
        camera_pattern: Regular expression, searched in the file names, whose only group is the
            camera: a number from 0, or a name (numbered in sorted order over all subsets). By
            default cameras are unknown.
        **kwargs: Further arguments of :class:`ReIDDataset`.
    """

    layout = """\
    train/<identity>/<image>
    query/<identity>/<image>
    gallery/<identity>/<image>"""

    def __init__(
        self, data_root: str, subset: str, camera_pattern: str | None = None, **kwargs: Any
    ) -> None:
        if camera_pattern is not None and re.compile(camera_pattern).groups != 1:
            raise ValueError(
                f'FolderReIDDataset: camera_pattern {camera_pattern!r} must have exactly one '
                'group, the camera.'
            )
        self.camera_pattern = camera_pattern
        super().__init__(data_root, subset, **kwargs)

    def scan(self, part: str) -> Iterator[Sample]:
        folder = self.path_to(part)
        identities = self._number('identity', self._identity_names)
        cameras = self._number('camera', self._camera_names) if self.camera_pattern else {}
        for identity in _subfolders(folder):
            for name in list_images(osp.join(folder, identity)):
                path = osp.join(folder, identity, name)
                sample = {'img_path': path, 'identity': identities[identity]}
                if self.camera_pattern:
                    sample['camera_id'] = cameras[self._camera_name(path)]
                yield sample

    def _number(self, key: str, collect: Callable[[], set[str]]) -> dict[str, int]:
        found = sorted(collect())
        numbers, names = enumerate_names(found)
        if names is not None:
            self._metainfo[f'{key}_names'] = names
        return dict(zip(found, numbers))

    def _identity_names(self) -> set[str]:
        return {name for folder in self._folders() for name in _subfolders(folder)}

    def _camera_names(self) -> set[str]:
        return {
            self._camera_name(osp.join(folder, identity, name))
            for folder in self._folders()
            for identity in _subfolders(folder)
            for name in list_images(osp.join(folder, identity))
        }

    def _folders(self) -> list[str]:
        folders = (osp.join(self.data_root, part) for part in ('train', 'query', 'gallery'))
        return [folder for folder in folders if osp.isdir(folder)]

    def _camera_name(self, path: str) -> str:
        assert self.camera_pattern is not None
        match = re.search(self.camera_pattern, osp.basename(path))
        if match is None:
            raise ValueError(
                f"{path}: the file name does not match camera_pattern '{self.camera_pattern}'."
            )
        return match.group(1)


def _subfolders(folder: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
