"""The saved form of a gallery: a directory of files that one manifest names and seals.

Every save writes files under new names, forces them onto the disk, replaces ``manifest.json``
atomically, and removes the files that no manifest names any more. A kill at any moment leaves the
old or the new gallery. The manifest holds sizes and CRC-32 sums of the files and of itself.
"""

from __future__ import annotations

import json
import os
import re
import uuid
import zlib
from pathlib import Path

import faiss
import numpy as np

from vitdown.files import sync, write_atomically

_MANIFEST = 'manifest.json'
_FORMAT = 'vitdown-gallery'
_VERSION = 1
_PREFIX = 'part-'
_PART = re.compile(rf'{_PREFIX}[0-9a-f]{{12}}-(index\.faiss|\d+\.npy)')
# A writer that replaces the gallery while it is read takes parts away; then the new one is read.
_READ_ATTEMPTS = 20


class GalleryFileError(RuntimeError):
    """A saved gallery that is torn, damaged or of an unknown version."""


def save_gallery(
    path: str | os.PathLike, index: faiss.Index, arrays: dict[str, np.ndarray], settings: dict
) -> None:
    """Write an index, named arrays and JSON settings; one writer at a time.

    Raises:
        FileExistsError: If ``path`` is a file, or a directory of something else.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and (_is_gallery(path) or not any(path.iterdir()))):
        raise FileExistsError(
            f'{path} exists and is not a gallery, or a damaged one: choose another directory'
        )
    path.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:12]
    files = [path / f'{_PREFIX}{token}-index.faiss']
    try:
        faiss.write_index(index, str(files[0]))
        for number, array in enumerate(arrays.values()):
            files.append(path / f'{_PREFIX}{token}-{number}.npy')
            np.save(files[-1], array, allow_pickle=False)
        parts = []
        for file in files:
            sync(file)
            parts.append({'file': file.name, 'size': file.stat().st_size, 'crc32': _crc(file)})
        body = {
            'format': _FORMAT,
            'version': _VERSION,
            'settings': settings,
            'index': parts[0],
            'arrays': dict(zip(arrays, parts[1:])),
        }
        sync(path)
        seal = zlib.crc32(_canonical(body))
        write_atomically(json.dumps({**body, 'crc32': seal}, indent=1).encode(), path / _MANIFEST)
    except BaseException:
        if not _names(path, token):
            for file in files:
                file.unlink(missing_ok=True)
        raise
    for stale in path.iterdir():
        if _is_part(stale) and stale not in files:
            stale.unlink()


def load_gallery(
    path: str | os.PathLike, mmap: bool
) -> tuple[faiss.Index, dict[str, np.ndarray], dict]:
    """Read what ``save_gallery`` wrote.

    Args:
        path (str): The directory.
        mmap (bool): Map the files instead of reading them. Then sizes are checked, but not sums,
            since those would need every byte.

    Raises:
        FileNotFoundError: If there is no gallery.
        GalleryFileError: If a file is missing, torn or damaged.
    """
    path = Path(path)
    if not (path / _MANIFEST).is_file():
        raise FileNotFoundError(f'{path} holds no gallery: there is no {_MANIFEST}')
    for _ in range(_READ_ATTEMPTS):
        manifest = _read_manifest(path)
        try:
            return _load_parts(path, manifest, mmap)
        except (GalleryFileError, FileNotFoundError):
            if manifest == _read_manifest(path):
                raise
    raise GalleryFileError(f'{path} is replaced faster than it can be read: save it less often')


def _load_parts(
    path: Path, manifest: dict, mmap: bool
) -> tuple[faiss.Index, dict[str, np.ndarray], dict]:
    for part in (manifest['index'], *manifest['arrays'].values()):
        file = path / Path(part['file']).name
        if not file.is_file():
            raise GalleryFileError(f'{file} of the gallery is missing: restore or build it again')
        if file.stat().st_size != part['size']:
            raise GalleryFileError(
                f'{file} is torn: {file.stat().st_size} of {part["size"]} bytes; restore the '
                'gallery or build it again'
            )
        if not mmap and _crc(file) != part['crc32']:
            raise GalleryFileError(
                f'{file} is damaged: its CRC-32 differs from the manifest; restore the gallery or '
                'build it again'
            )
    index = _read_index(str(path / Path(manifest['index']['file']).name), mmap)
    arrays = {
        name: _read_array(path / Path(part['file']).name, mmap)
        for name, part in manifest['arrays'].items()
    }
    if index.ntotal != len(arrays['ids']):
        raise GalleryFileError(
            f'{path}: {index.ntotal} vectors but {len(arrays["ids"])} ids; build it again'
        )
    return index, arrays, manifest['settings']


def _read_array(file: Path, mmap: bool) -> np.ndarray:
    try:
        return np.load(file, mmap_mode='r' if mmap else None, allow_pickle=False)
    # A damaged header can fail in NumPy's parser in any way.
    except Exception as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise GalleryFileError(f'{file} is damaged: {error}; restore or build it again') from None


def _read_index(file: str, mmap: bool) -> faiss.Index:
    try:
        if not mmap:
            return faiss.read_index(file)
        # Inverted lists and plain arrays are mapped by two mechanisms of FAISS.
        index = faiss.read_index(file, faiss.IO_FLAG_MMAP_IFC)
        if faiss.try_extract_index_ivf(index) is not None:
            index = faiss.read_index(file, faiss.IO_FLAG_MMAP)
        return index
    except RuntimeError as error:
        raise GalleryFileError(f'FAISS can not read {file}: {error}') from None


def _read_manifest(path: Path) -> dict:
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        seal = manifest.pop('crc32')
        sound = seal == zlib.crc32(_canonical(manifest)) and manifest['format'] == _FORMAT
        version = manifest['version']
    except (ValueError, KeyError, TypeError, AttributeError):
        sound, version = False, None
    if not sound:
        raise GalleryFileError(f'{path / _MANIFEST} is damaged: restore it or build it again')
    if version != _VERSION:
        raise GalleryFileError(
            f'{path} has version {version} of the format, this vitdown reads {_VERSION}'
        )
    return manifest


def _canonical(body: dict) -> bytes:
    return json.dumps(body, sort_keys=True).encode()


def _crc(file: Path) -> int:
    value = 0
    with file.open('rb') as stream:
        while block := stream.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _is_gallery(path: Path) -> bool:
    """Whether a folder holds a gallery, or what a first save that was killed leaves."""
    if (path / _MANIFEST).is_file():
        try:
            _read_manifest(path)
        except GalleryFileError:
            return False
        return True
    return all(_is_part(file) for file in path.iterdir())


def _is_part(file: Path) -> bool:
    return bool(_PART.fullmatch(file.name)) or file.name.startswith(f'.{_MANIFEST}.')


def _names(path: Path, token: str) -> bool:
    manifest = path / _MANIFEST
    return manifest.is_file() and token in manifest.read_text(errors='replace')
