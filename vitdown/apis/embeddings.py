"""Features of images, and the files they are kept in."""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitdown.evaluation.feature_set import UNKNOWN_CAMERA, load_feature_sets
from vitdown.evaluation.index.metadata import Columns
from vitdown.files import write_atomically

from .values import typed_column

_COLUMN = 'metadata/'
_RESERVED = ('path', 'feature', 'features', 'score', 'rank', 'id', 'query')


@dataclass
class Embeddings:
    """Features of images, in the order of the inputs.

    Attributes:
        features (np.ndarray): (N, D) float32, not normalised.
        paths (np.ndarray): (N,) strings, files or addresses; names such as ``'array 0'`` for
            images that were no files.
        metadata (dict[str, np.ndarray]): Columns of N values.
        model (str): Fingerprint of the model, ``''`` if unknown.
        skipped (dict[str, str]): Images that could not be read, and why.

    Raises:
        ValueError: If a column has the name of a result, such as ``'score'``.
    """

    features: np.ndarray
    paths: np.ndarray
    metadata: Columns = field(default_factory=dict)
    model: str = ''
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_names(self.metadata, 'metadata')

    def __len__(self) -> int:
        return len(self.features)

    def columns(self) -> Columns:
        """Metadata with the column ``path``, as galleries keep them."""
        return {'path': self.paths, **self.metadata}

    def save(self, path: str | os.PathLike) -> None:
        """Write ``.npz``, ``.jsonl`` or ``.csv``, whole or not at all.

        * ``.npz``: arrays ``features`` (N, D), ``paths`` (N,), ``model`` () and one named
          ``metadata/...`` for each column; what :func:`load_embeddings` reads.
        * ``.jsonl``: a JSON object a line, ``{"path": ..., <columns>, "feature": [...]}``.
        * ``.csv``: a head line, ``path``, the columns, and ``f0`` to ``f<D-1>``.

        Raises:
            ValueError: If the name ends otherwise.
        """
        writers = {'.npz': self._npz, '.jsonl': self._jsonl, '.csv': self._csv}
        suffix = Path(path).suffix
        if suffix not in writers:
            raise ValueError(f'{path}: use a name that ends in .npz, .jsonl or .csv')
        write_atomically(writers[suffix](), path)

    def _npz(self) -> bytes:
        stream = io.BytesIO()
        arrays: dict[str, Any] = {
            'features': self.features,
            'paths': self.paths,
            'model': np.array(self.model),
            **{_COLUMN + name: column for name, column in self.metadata.items()},
        }
        np.savez(stream, **arrays)
        return stream.getvalue()

    def _jsonl(self) -> bytes:
        names, rows = list(self.columns()), zip(*map(plain_values, self.columns().values()))
        return b''.join(
            json.dumps({**dict(zip(names, row)), 'feature': feature.tolist()}).encode() + b'\n'
            for row, feature in zip(rows, self.features)
        )

    def _csv(self) -> bytes:
        stream = io.StringIO(newline='')
        writer = csv.writer(stream)
        writer.writerow([*self.columns(), *(f'f{i}' for i in range(self.features.shape[1]))])
        rows = zip(*map(plain_values, self.columns().values()))
        for row, feature in zip(rows, self.features):
            writer.writerow([*row, *feature.tolist()])
        return stream.getvalue().encode()


def plain_values(column: np.ndarray) -> list:
    """Values of a column as JSON knows them; times become ISO text."""
    return (np.datetime_as_string(column) if column.dtype.kind == 'M' else column).tolist()


def load_embeddings(path: str | os.PathLike) -> Embeddings:
    """Read an ``.npz`` file of :meth:`Embeddings.save`, or the gallery of a feature file.

    Of a feature file (``tools/test.py --out``), the gallery is taken, with identities and, where
    they are known, cameras as metadata.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is neither.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist')
    if not zipfile.is_zipfile(path):
        raise ValueError(f'{path} is no .npz file, which tools/embed.py and tools/test.py write')
    with np.load(path, allow_pickle=False) as arrays:
        names = arrays.files
        if 'gallery_features' not in names:
            missing = [name for name in ('features', 'paths', 'model') if name not in names]
            if missing:
                raise ValueError(f'{path} holds no array {missing[0]!r}; it holds {names}')
            columns = {n.removeprefix(_COLUMN): arrays[n] for n in names if n.startswith(_COLUMN)}
            return Embeddings(arrays['features'], arrays['paths'], columns, str(arrays['model']))
    gallery = load_feature_sets(path)[1]
    columns = {'identity': gallery.ids}
    if (gallery.cameras != UNKNOWN_CAMERA).any():
        columns['camera'] = gallery.cameras
    return Embeddings(gallery.features, gallery.paths, columns)


def read_metadata(table: str | os.PathLike, paths: Sequence[str]) -> Columns:
    """Columns of a CSV table, a value for each image.

    Args:
        table (str): CSV file with a head line. The column ``path`` holds image files, relative to
            the table's folder or absolute, or addresses. The others become integers, numbers, times
            (ISO 8601; with ``Z`` or an offset they become UTC) or text; digits with leading zeros
            stay text.
        paths (Sequence[str]): The images; each must be in the table, which may hold more.

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: If the table has no usable head line, a row has too few or too many fields, an
            image is missing, or some values of a column are times and others are not.
    """
    folder = os.path.dirname(os.path.abspath(table))
    with open(table, newline='', encoding='utf-8-sig') as file:
        reader = csv.DictReader(file)
        fields = reader.fieldnames or []
        names = [name for name in fields if name != 'path']
        if not names or len(names) == len(fields):
            raise ValueError(
                f"{table}: the head line must name 'path' and at least one more column"
            )
        _check_names(names, table)
        rows = {}
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f'{table}, line {reader.line_num}: {len(fields)} fields expected')
            rows[_absolute(row['path'], folder)] = row
    keys = [_absolute(path, os.getcwd()) for path in paths]
    missing = [path for path, key in zip(paths, keys) if key not in rows]
    if missing:
        raise ValueError(
            f'{table} has no row for {missing[0]} (and {len(missing) - 1} more images); the column '
            "'path' is relative to the table's folder"
        )
    try:
        return {name: typed_column(name, [rows[key][name] for key in keys]) for name in names}
    except ValueError as error:
        raise ValueError(f'{table}: {error}') from None


def _check_names(names: Iterable[str], source: str | os.PathLike) -> None:
    if reserved := sorted(set(names) & set(_RESERVED)):
        raise ValueError(f'{source}: the column name {reserved[0]!r} is taken; choose another')


def _absolute(path: str, folder: str) -> str:
    return path if '://' in path else os.path.realpath(os.path.join(folder, path))
