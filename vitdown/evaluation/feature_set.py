"""Features with their labels, and the ``.npz`` files they are kept in."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

UNKNOWN_CAMERA = -1


@dataclass
class FeatureSet:
    """Features and labels of the query or gallery images.

    Attributes:
        features: (N, D) floating-point numbers.
        ids: (N,) integers.
        cameras: (N,) integers, -1 where unknown.
        paths: (N,) names of the images, ``''`` where unknown.
    """

    features: np.ndarray
    ids: np.ndarray
    cameras: np.ndarray
    paths: np.ndarray

    def __len__(self) -> int:
        return len(self.features)


_KEYS = tuple(field.name for field in fields(FeatureSet))
_KINDS = {
    'features': ('f', 'floating-point numbers'),
    'ids': ('iu', 'integers'),
    'cameras': ('iu', 'integers'),
    'paths': ('U', 'strings'),
}
# What reading a file with flipped or missing bytes ends in
_DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


def save_feature_sets(path: str | Path, query: FeatureSet, gallery: FeatureSet) -> None:
    """Write both sets to a ``.npz`` file, as ``query_features``, ``gallery_ids`` and so on."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sets = {'query': query, 'gallery': gallery}
    np.savez(
        path,
        **{f'{name}_{key}': getattr(part, key) for name, part in sets.items() for key in _KEYS},
    )


def load_feature_sets(path: str | Path) -> tuple[FeatureSet, FeatureSet]:
    """Query and gallery of a ``.npz`` file.

    It must hold ``query_features`` (Q, D), ``query_ids`` (Q,), ``gallery_features`` (G, D) and
    ``gallery_ids`` (G,), and may hold ``query_cameras`` with ``gallery_cameras`` (integers, -1
    where unknown) and ``query_paths`` with ``gallery_paths`` (strings).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no ``.npz`` file or damaged, lacks an array, or an array has a
            type or length that does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist')
    if not _is_npz(path):
        raise ValueError(f'{path} is no .npz file, which numpy.savez and tools/test.py --out write')
    try:
        with np.load(path, allow_pickle=False) as arrays:
            query, gallery = (_read(arrays, name, path) for name in ('query', 'gallery'))
    except _DAMAGES as error:
        raise ValueError(f'{path} is damaged ({error}): write or copy it again') from error
    return query, gallery


def _is_npz(path: Path) -> bool:
    # NumPy takes what starts otherwise for a pickle, whatever the end looks like.
    with path.open('rb') as file:
        return file.read(2) == b'PK' and zipfile.is_zipfile(path)


def _read(arrays: np.lib.npyio.NpzFile, name: str, path: Path) -> FeatureSet:
    features = _array(arrays, f'{name}_features', path)
    count = len(features) if features.ndim else 0
    read = {'features': features, 'ids': _array(arrays, f'{name}_ids', path)}
    for key, default in (('cameras', UNKNOWN_CAMERA), ('paths', '')):
        full = f'{name}_{key}'
        read[key] = _array(arrays, full, path) if full in arrays.files else np.full(count, default)
    for key, array in read.items():
        kinds, what = _KINDS[key]
        if array.dtype.kind not in kinds:
            raise ValueError(f'{path}: {name}_{key} must be {what}, not {array.dtype}')
        if array.shape[:1] != (count,):
            raise ValueError(
                f'{path}: {name}_{key} has the shape {array.shape}, which does not fit '
                f'{name}_features of the shape {features.shape}'
            )
    return FeatureSet(**read)


def _array(arrays: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    if key not in arrays.files:
        found = ', '.join(arrays.files) or 'nothing'
        raise ValueError(f'{path} holds no array {key!r}; it holds {found}')
    try:
        return arrays[key]
    except ValueError as error:
        raise ValueError(
            f'{path}: {key!r} cannot be read ({error}); save plain arrays, strings with dtype=str'
        ) from error


def find_same_images(query: FeatureSet, gallery: FeatureSet) -> np.ndarray:
    """Where a query image lies in the gallery, by path and identity; (Q,), -1 if it doesn't."""
    index = {
        (path, identity): i
        for i, (path, identity) in enumerate(zip(gallery.paths, gallery.ids))
        if path
    }
    return np.array([index.get(key, -1) for key in zip(query.paths, query.ids)])


def cameras_known(query: FeatureSet, gallery: FeatureSet) -> bool:
    """Whether camera ids are known, for all images or for none.

    Raises:
        ValueError: If they are known for some only.
    """
    cameras = np.concatenate([query.cameras, gallery.cameras])
    unknown = np.flatnonzero(cameras == UNKNOWN_CAMERA)
    if 0 < len(unknown) < len(cameras):
        first = np.concatenate([query.paths, gallery.paths])[unknown[0]]
        raise ValueError(
            f'{len(unknown)} of {len(cameras)} images have no camera id (-1), the first is '
            f'{str(first)!r}: give all images one for the cross-camera protocol, or none for the '
            'plain one'
        )
    return not len(unknown)
