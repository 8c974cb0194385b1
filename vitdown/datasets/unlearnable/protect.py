"""Writing a protected copy of a dataset's training images, and checking such a copy."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vitdown.files import write_atomically

from ..base import JUNK_IDENTITY
from ..custom import enumerate_names
from ..transforms.decoding import CorruptImageError, decode_image
from .convolution import convolve_image
from .filters import check_filter_options, class_filters, poison_mask
from .key import Key

MANIFEST = 'conv_unlearnable.json'
TABLE = 'train.csv'
# What is written so far, while the manifest is not complete
_JOURNAL = 'conv_unlearnable.jsonl'
_VERSION = 2
_ENTRY = dict(source=str, file=str, label=int, filtered=bool, source_sha256=str, sha256=str)
_FIELDS = dict(
    complete=bool, settings=dict, num_images=int, num_classes=int, source_digest=str, key_salt=str,
    key_fingerprint=str, files=list,
)  # fmt: skip
_SAVE: dict[str, dict[str, Any]] = {
    'png': dict(format='PNG', compress_level=6),
    'webp': dict(format='WEBP', lossless=True),
    'bmp': dict(format='BMP'),
    'jpeg': dict(format='JPEG', quality=95, subsampling=0),
}
FORMATS = tuple(_SAVE)
LOSSY_FORMATS = ('jpeg',)


class ProtectionError(ValueError):
    """A source, output folder or setting that does not allow protecting or checking."""


@dataclass(frozen=True)
class SourceImage:
    """One image to protect.

    Attributes:
        name: Path below the source folder, with ``/``; its place in the output follows from it.
        label: Its class, 0..K-1, which chooses the filter.
        identity: Its identity or class as the dataset has it.
        read: Gives the image, (H, W, 3) uint8 BGR.
        camera: 0-based camera or its name; unknown: -1, or empty where the others have names.
        view: 0-based view or its name; the same.
    """

    name: str
    label: int
    identity: int | str
    read: Callable[[], np.ndarray]
    camera: int | str = -1
    view: int | str = -1


@dataclass(frozen=True)
class Settings:
    """How images are filtered and written; see :class:`ConvUnlearnable` for the first ones.

    Raises:
        ProtectionError: A value is out of range, or images that stay as they are would be
            written in a lossy format.
    """

    kernel_size: int = 9
    blur_parameter: float = 0.06
    poison_fraction: float = 1.0
    grayscale: bool = False
    same_filter: bool = False
    image_format: str = 'png'

    def __post_init__(self) -> None:
        try:
            check_filter_options(self.kernel_size, self.blur_parameter)
        except ValueError as error:
            raise ProtectionError(str(error)) from None
        if not 0 <= self.poison_fraction <= 1:
            raise ProtectionError(f'The fraction must be 0 to 1, got {self.poison_fraction}.')
        if self.image_format not in FORMATS:
            raise ProtectionError(f'The format must be one of {FORMATS}, got {self.image_format}.')
        if self.image_format in LOSSY_FORMATS and self.poison_fraction < 1:
            raise ProtectionError(
                f'{self.image_format} would change the images that stay unprotected when the '
                'fraction is below 1; choose a lossless format.'
            )


@dataclass(frozen=True)
class Check:
    """What :func:`verify` found: names of files, each in one of the lists.

    ``matching`` are images; the other lists may have the table, and ``unlisted`` any other file.
    """

    matching: list[str]
    different: list[str]
    missing: list[str]
    unlisted: list[str]


def protect(
    images: Sequence[SourceImage],
    output: str | os.PathLike,
    key: Key,
    settings: Settings,
    workers: int = 1,
    progress: bool = True,
) -> Path:
    """Write protected images, a table and a manifest; go on where an earlier call was stopped.

    Every file appears under its name only when it is complete. An image that is there already is
    kept if neither it nor its source has changed since it was written, and written anew otherwise.
    The table ``train.csv`` is that of ``CSVReIDDataset``. The manifest lists files, classes and
    settings; of the key it has a salted fingerprint, by which a call with another key is refused.

    Args:
        images: Images in the dataset's order, which the choice of images depends on.
        output: Folder to write to; new, empty or left by an earlier call.
        key: The secret.
        settings: How to filter and write.
        workers: Number of threads.
        progress: Show a progress bar.

    Returns:
        The manifest's path.

    Raises:
        ProtectionError: The folder holds other files, or was begun with other images, settings or
            another key; its manifest is damaged; the table could not tell the classes apart.
        CorruptImageError: Images can't be decoded; all others are written first.
    """
    output = Path(output)
    names = _output_names(images, settings)
    filters, chosen = _draw(images, key, settings)
    manifest = _begin(images, names, output, key, settings)
    journal = _Journal(output / _JOURNAL, manifest['files'])

    def write(index: int) -> dict | None:
        image, target = images[index], output / names[index]
        try:
            pixels = image.read()
        except CorruptImageError:
            return None
        source = _pixel_digest(pixels)
        entry = journal.entries.get(names[index])
        if entry and entry['source_sha256'] == source and _file_digest(target) == entry['sha256']:
            return entry
        content = _encode(pixels, filters[image.label], chosen[index], settings)
        entry = _entry(image, names[index], chosen[index], source, content)
        # First the journal: an image that it does not know would have to be written again.
        journal.add(entry)
        write_atomically(content, target)
        return entry

    entries = _in_parallel(write, len(images), workers, progress, 'protecting')
    bad = [image.name for image, entry in zip(images, entries) if entry is None]
    if bad:
        raise CorruptImageError(
            f'{len(bad)} of {len(images)} images cannot be decoded: {_some(bad)}. The others are '
            f'written; restore these files and run the same command again.'
        )
    write_atomically(_table(images, names), output / TABLE)
    _write_manifest(manifest | dict(files=entries, complete=True), output)
    journal.path.unlink(missing_ok=True)
    return output / MANIFEST


def verify(
    images: Sequence[SourceImage],
    output: str | os.PathLike,
    key: Key,
    workers: int = 1,
    progress: bool = True,
    **expected: Any,
) -> Check:
    """Compute every protected image again and compare it with the file; look for other files.

    An image matches if it is the file that the manifest lists, with all that it says about it, and
    has the pixels that source and key give: pixels, so that another version of the image
    library does not matter with lossless formats.

    Args:
        images: Images in the dataset's order.
        output: Folder that :func:`protect` wrote.
        key: The secret.
        workers: Number of threads.
        progress: Show a progress bar.
        **expected: Values of :class:`Settings` that the manifest must have.

    Raises:
        ProtectionError: There is no manifest, it is damaged, not complete or belongs to other
            images, or settings or key are others.
    """
    output = Path(output)
    manifest = _read_manifest(output)
    settings = Settings(**manifest['settings'])
    names = _output_names(images, settings)
    _compare(manifest, images, key, replace(settings, **expected), output)
    if not manifest['complete']:
        raise ProtectionError(
            f'{output} is not complete; run the command that began it again, then verify.'
        )
    filters, chosen = _draw(images, key, settings)
    listed = {entry['file']: entry for entry in manifest['files']}

    def compare(index: int) -> str:
        target = output / names[index]
        if not target.is_file():
            return 'missing'
        image = images[index]
        pixels = image.read()
        wanted = _encode(pixels, filters[image.label], chosen[index], settings)
        content = target.read_bytes()
        try:
            found = decode_image(content, str(target))
        except CorruptImageError:
            return 'different'
        entry = _entry(image, names[index], chosen[index], _pixel_digest(pixels), content)
        same = entry == listed.get(names[index])
        same = same and np.array_equal(found, decode_image(wanted, str(target)))
        return 'matching' if same else 'different'

    results = _in_parallel(compare, len(images), workers, progress, 'verifying')
    found = {kind: [n for n, r in zip(names, results) if r == kind]
             for kind in ('matching', 'different', 'missing')}  # fmt: skip
    if not (output / TABLE).is_file():
        found['missing'].append(TABLE)
    elif (output / TABLE).read_bytes() != _table(images, names):
        found['different'].append(TABLE)
    present = {path.relative_to(output).as_posix() for path in all_files(output)}
    return Check(**found, unlisted=sorted(present - {*names, TABLE, MANIFEST}))


def all_files(folder: Path) -> list[Path]:
    """Files below a folder, in order; symbolic links are followed, each folder is read once."""
    files, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(root)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders.sort()
        files += [Path(root, name) for name in names]
    return sorted(path for path in files if path.is_file())


class _Journal:
    """Lines about images, each added before its image is there."""

    def __init__(self, path: Path, entries: Sequence[dict]) -> None:
        self.path = path
        self._lock = threading.Lock()
        self.entries = {entry['file']: entry for entry in entries}
        if path.is_file():
            for line in path.read_text(errors='replace').splitlines():
                # A kill may leave half a line.
                with suppress(json.JSONDecodeError):
                    entry = json.loads(line)
                    if _fits(entry, _ENTRY):
                        self.entries[entry['file']] = entry

    def add(self, entry: dict) -> None:
        with self._lock, open(self.path, 'a') as file:
            file.write(f'\n{json.dumps(entry)}')


def _draw(
    images: Sequence[SourceImage], key: Key, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    number = 1 + max(image.label for image in images)
    filters = class_filters(
        key.seed, number, settings.kernel_size, settings.blur_parameter,
        same_filter=settings.same_filter,
    )  # fmt: skip
    chosen = poison_mask(
        key.seed, number, settings.kernel_size, len(images), settings.poison_fraction
    )
    return filters, chosen


def _encode(pixels: np.ndarray, filt: np.ndarray, chosen: bool, settings: Settings) -> bytes:
    if chosen:
        pixels = convolve_image(pixels, filt, settings.grayscale)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., ::-1])).save(
        buffer, **_SAVE[settings.image_format]
    )
    return buffer.getvalue()


def _entry(image: SourceImage, name: str, chosen: bool, source_digest: str, content: bytes) -> dict:
    """What the manifest says about a file."""
    return dict(
        source=image.name,
        file=name,
        label=image.label,
        filtered=bool(chosen),
        source_sha256=source_digest,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _check_table(images: Sequence[SourceImage], names: Sequence[str]) -> None:
    """Readers of the table must find the same images and classes."""
    padded = [name for name in names if name != name.strip()]
    if padded:
        raise ProtectionError(
            f'{len(padded)} file names begin or end with white space, which the table can not '
            f'keep: {_some([repr(name) for name in padded])}. Rename them.'
        )
    cells = {image.label: str(image.identity).strip() for image in images}
    numbers, _ = enumerate_names(list(cells.values()))
    for number, group in groupby(sorted(zip(numbers, cells.values())), lambda pair: pair[0]):
        same = [cell for _, cell in group]
        if len(same) > 1:
            raise ProtectionError(
                f'The classes {" and ".join(map(repr, same))} would be one class in the table; '
                'rename one of them.'
            )
        if number <= JUNK_IDENTITY or not same[0]:
            raise ProtectionError(
                f'The class {same[0]!r} would be no class in the table: identities are names, or '
                'numbers from 0. Rename it.'
            )


def _output_names(images: Sequence[SourceImage], settings: Settings) -> list[str]:
    if not images:
        raise ProtectionError('There are no images to protect.')
    unprintable = [image.name for image in images if not _is_utf8(image.name)]
    if unprintable:
        raise ProtectionError(
            f'{len(unprintable)} file names are not UTF-8, which the table needs: '
            f'{_some([ascii(name) for name in unprintable])}. Rename them.'
        )
    suffix = {'jpeg': '.jpg'}.get(settings.image_format, f'.{settings.image_format}')
    names = [str(Path(image.name).with_suffix(suffix).as_posix()) for image in images]
    if len(set(names)) < len(names):
        pairs = sorted(zip(names, (image.name for image in images)))
        doubles = [[source for _, source in group] for _, group in groupby(pairs, lambda p: p[0])]
        first = next(sources for sources in doubles if len(sources) > 1)
        raise ProtectionError(
            f'{" and ".join(first)} would become the same file; rename one of them.'
        )
    _check_table(images, names)
    return names


def _begin(
    images: Sequence[SourceImage],
    names: Sequence[str],
    output: Path,
    key: Key,
    settings: Settings,
) -> dict:
    """The manifest of an earlier call, or a new one in an empty folder."""
    if output.is_file():
        raise ProtectionError(f'The output {output} is a file; name a folder.')
    if (output / MANIFEST).is_file():
        manifest = _read_manifest(output)
        _compare(manifest, images, key, settings, output)
        _remove_remains({(output / name).parent for name in names} | {output})
        return manifest
    # A call that was killed early may have left nothing but an unfinished manifest.
    _remove_remains([output], f'.{MANIFEST}.*.tmp')
    if output.is_dir() and any(output.iterdir()):
        raise ProtectionError(
            f'The output folder {output} is not empty and holds no {MANIFEST}; nothing is '
            'overwritten. Name a new folder.'
        )
    salt = secrets.token_bytes(16)
    manifest = dict(
        method='class-wise convolution (ConvUnlearnable)',
        version=_VERSION,
        complete=False,
        settings=asdict(settings),
        num_images=len(images),
        num_classes=1 + max(image.label for image in images),
        source_digest=_digest(images),
        key_salt=salt.hex(),
        key_fingerprint=key.fingerprint(salt),
        files=[],
    )
    _write_manifest(manifest, output)
    return manifest


def _remove_remains(folders: Iterable[Path], pattern: str = '.*.tmp') -> None:
    """Delete the unfinished files of a call that was killed."""
    for folder in folders:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _compare(
    manifest: dict, images: Sequence[SourceImage], key: Key, settings: Settings, output: Path
) -> None:
    if manifest['key_fingerprint'] != key.fingerprint(bytes.fromhex(manifest['key_salt'])):
        raise ProtectionError(f'{output} was made with another key.')
    wanted = asdict(settings)
    differences = [
        f'{name} {manifest["settings"].get(name)!r} instead of {wanted[name]!r}'
        for name in wanted
        if manifest['settings'].get(name) != wanted[name]
    ]
    if differences:
        raise ProtectionError(
            f'{output} was made with other settings: {", ".join(differences)}. Use the same, or '
            'name a new folder.'
        )
    found = manifest['num_images'], manifest['num_classes'], manifest['source_digest']
    if found != (len(images), 1 + max(image.label for image in images), _digest(images)):
        raise ProtectionError(
            f'{output} was made from other files: {manifest["num_images"]} images of '
            f'{manifest["num_classes"]} classes then, {len(images)} of '
            f'{1 + max(image.label for image in images)} now, or other names. Filters follow from '
            'the sorted classes, so name a new folder.'
        )


def _digest(images: Sequence[SourceImage]) -> str:
    """Digest of names and labels in order."""
    lines = '\n'.join(f'{image.label} {image.name}' for image in images)
    return hashlib.sha256(lines.encode()).hexdigest()


def _pixel_digest(pixels: np.ndarray) -> str:
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _file_digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_manifest(output: Path) -> dict:
    path = output / MANIFEST
    if not path.is_file():
        raise ProtectionError(f'{output} has no {MANIFEST}: it is no output of this tool.')
    try:
        manifest = json.loads(path.read_text())
        version = manifest['version']
        if version == _VERSION:
            _check_manifest(manifest)
    except (ValueError, KeyError, TypeError) as error:
        raise ProtectionError(
            f'{path} is damaged ({error}). Bring it back, or protect into a new folder.'
        ) from error
    if version != _VERSION:
        raise ProtectionError(f'{path} is of version {version}, this code writes {_VERSION}.')
    return manifest


def _check_manifest(manifest: dict) -> None:
    if not _fits(manifest, _FIELDS):
        wrong = [name for name, kind in _FIELDS.items() if not isinstance(manifest.get(name), kind)]
        raise ValueError(f'no valid {", ".join(wrong)}')
    bytes.fromhex(manifest['key_salt'])
    Settings(**manifest['settings'])
    if not all(_fits(entry, _ENTRY) for entry in manifest['files']):
        raise ValueError('no valid files')


def _fits(entry: Any, kinds: dict[str, type]) -> bool:
    """Whether it is a dict with values of these types."""
    return isinstance(entry, dict) and all(
        isinstance(entry.get(name), kind) for name, kind in kinds.items()
    )


def _write_manifest(manifest: dict, output: Path) -> None:
    write_atomically((json.dumps(manifest, indent=1) + '\n').encode(), output / MANIFEST)


def _table(images: Sequence[SourceImage], names: Sequence[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['image', 'identity', 'camera', 'view', 'subset'])
    for image, name in zip(images, names):
        writer.writerow([name, image.identity, image.camera, image.view, 'train'])
    return text.getvalue().encode()


def _in_parallel(function: Callable, number: int, workers: int, progress: bool, title: str) -> list:
    pool = ThreadPoolExecutor(workers)
    try:
        results = pool.map(function, range(number))
        bar = tqdm(results, title, number, disable=None if progress else True, unit='images')
        return list(bar)
    finally:
        # An interrupted call must not go on with the images that are still to come.
        pool.shutdown(cancel_futures=True)


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
