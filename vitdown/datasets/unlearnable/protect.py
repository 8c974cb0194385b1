"""Writing a protected copy of a dataset's training images, and checking such a copy."""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vitdown.files import write_atomically

from ..transforms.decoding import CorruptImageError, decode_image
from .convolution import convolve_image
from .filters import class_filters, poison_mask
from .key import Key
from .manifest import (
    JOURNAL,
    MANIFEST,
    Journal,
    check_same,
    contents,
    describe,
    file_digest,
    new_manifest,
    pixel_digest,
    read_manifest,
    write_manifest,
)
from .settings import LOSSY_FORMATS, SAVE_OPTIONS, ProtectionError, Settings, SourceImage, some
from .table import TABLE, output_names, table_of


@dataclass(frozen=True)
class Check:
    """What :func:`verify` found: names of files, each in one of the lists.

    ``matching`` are images; the other lists may have the table, ``different`` the manifest if it
    lists more than the images, and ``unlisted`` any other file.
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
    num_classes: int | None = None,
) -> Path:
    """Write protected images, a table and a manifest; go on where an earlier call was stopped.

    Every file appears under its name only when it is complete. An image that is there already is
    kept if neither it nor its source has changed since it was written, and written anew otherwise.
    Until the end, the manifest says that the copy is not complete.
    The table ``train.csv`` is that of ``CSVReIDDataset``. The manifest lists files, classes and
    settings; of the key it has a salted fingerprint, by which a call with another key is refused.

    Args:
        images: Images in the dataset's order, which the choice of images depends on.
        output: Folder to write to; new, empty or left by an earlier call.
        key: The secret.
        settings: How to filter and write.
        workers: Number of threads.
        progress: Show a progress bar.
        num_classes: Number of classes, 1 + the highest label by default; the choice of images
            depends on it.

    Returns:
        The manifest's path.

    Raises:
        ProtectionError: The folder holds other files, or was begun with other images, settings or
            another key; another process writes there; its manifest is damaged; the table could not
            tell the classes apart; a label is not below ``num_classes``.
        CorruptImageError: Images can't be decoded; all others are written first.
    """
    output = Path(output)
    names = output_names(images, settings)
    number = _number_of_classes(images, num_classes)
    filters, chosen = _draw(len(images), number, key, settings)
    with _locked(output):
        manifest = _begin(contents(images, number, settings), names, output, key)
        journal = Journal(output, manifest['files'])

        def write(index: int) -> dict | None:
            image, target = images[index], output / names[index]
            try:
                pixels = image.read()
            except CorruptImageError:
                return None
            source = pixel_digest(pixels)
            entry = journal.entries.get(names[index])
            if entry and (entry['source_sha256'], entry['sha256']) == (source, file_digest(target)):
                return entry
            content = _encode(pixels, filters[image.label], chosen[index], settings)
            entry = describe(image, names[index], chosen[index], source, content)
            # First the journal: an image that it does not know would have to be written again.
            journal.add(entry)
            write_atomically(content, target)
            return entry

        entries = _in_parallel(write, len(images), workers, progress, 'protecting')
        bad = [image.name for image, entry in zip(images, entries) if entry is None]
        if bad:
            raise CorruptImageError(
                f'{len(bad)} of {len(images)} images cannot be decoded: {some(bad)}. The others '
                'are written; restore these files and run the same command again.'
            )
        write_atomically(table_of(images, names), output / TABLE)
        write_manifest(manifest | dict(files=entries, complete=True), output)
        journal.path.unlink(missing_ok=True)
    return output / MANIFEST


def weaknesses(
    images: Sequence[SourceImage], key: Key, settings: Settings, num_classes: int | None = None
) -> list[str]:
    """Why a copy that :func:`protect` writes may be no protection, in words; none is good.

    The arguments are those of :func:`protect`.
    """
    filters, _ = _draw(0, _number_of_classes(images, num_classes), key, settings)
    labels = sorted({image.label for image in images})
    different = len(np.unique(filters[labels].astype(np.float32), axis=0))
    found = []
    if different == 1:
        found.append('all classes have the same filter, which protects nothing')
    elif different < len(labels):
        found.append(
            f'the {len(labels)} classes have but {different} different filters, which do not tell '
            'all classes apart; take larger filters or more blur'
        )
    if settings.poison_fraction < 1:
        found.append(
            'with images that stay as they are (a fraction below 1) there is next to no protection'
        )
    if settings.image_format in LOSSY_FORMATS:
        found.append(
            f'{settings.image_format} changes pixels after filtering; what that does to the '
            'protection was never measured'
        )
    return found


def verify(
    images: Sequence[SourceImage],
    output: str | os.PathLike,
    key: Key,
    workers: int = 1,
    progress: bool = True,
    num_classes: int | None = None,
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
        num_classes: Number of classes, 1 + the highest label by default.
        **expected: Values of :class:`Settings` that the manifest must have.

    Raises:
        ProtectionError: There is no manifest, it is damaged, not complete or belongs to other
            images, or settings or key are others.
    """
    output = Path(output)
    manifest = read_manifest(output)
    settings = Settings(**manifest['settings'])
    names = output_names(images, settings)
    number = _number_of_classes(images, num_classes)
    check_same(manifest, contents(images, number, replace(settings, **expected)), key, output)
    if not manifest['complete']:
        raise ProtectionError(
            f'{output} is not complete; run the command that began it again, then verify.'
        )
    filters, chosen = _draw(len(images), number, key, settings)
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
        entry = describe(image, names[index], chosen[index], pixel_digest(pixels), content)
        same = entry == listed.get(names[index])
        same = same and np.array_equal(found, decode_image(wanted, str(target)))
        return 'matching' if same else 'different'

    results = _in_parallel(compare, len(images), workers, progress, 'verifying')
    found = {kind: [n for n, r in zip(names, results) if r == kind]
             for kind in ('matching', 'different', 'missing')}  # fmt: skip
    if not (output / TABLE).is_file():
        found['missing'].append(TABLE)
    elif (output / TABLE).read_bytes() != table_of(images, names):
        found['different'].append(TABLE)
    if len(manifest['files']) > len(listed) or listed.keys() - {*names}:
        found['different'].append(MANIFEST)
    present = {path.relative_to(output).as_posix() for path in all_files(output)}
    return Check(**found, unlisted=sorted(present - {*names, TABLE, MANIFEST}))


def all_files(folder: Path) -> list[Path]:
    """Files below a folder, in order; symbolic links are followed, each folder is read once.

    Links that lead nowhere and other things that are no folders are there, too.

    Raises:
        OSError: A folder can't be read.
    """

    def fail(error: OSError) -> None:
        raise error

    files, seen = [], set()
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        place = os.path.realpath(root)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders.sort()
        files += [Path(root, name) for name in names]
    return sorted(files)


def _number_of_classes(images: Sequence[SourceImage], given: int | None) -> int:
    needed = 1 + max(image.label for image in images)
    if given is not None and given < needed:
        raise ProtectionError(
            f'num_classes must be at least {needed}, since there is the label {needed - 1}, got '
            f'{given}.'
        )
    return needed if given is None else given


def _draw(
    num_images: int, num_classes: int, key: Key, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    filters = class_filters(
        key.seed, num_classes, settings.kernel_size, settings.blur_parameter,
        same_filter=settings.same_filter,
    )  # fmt: skip
    chosen = poison_mask(
        key.seed, num_classes, settings.kernel_size, num_images, settings.poison_fraction
    )
    return filters, chosen


def _encode(pixels: np.ndarray, filt: np.ndarray, chosen: bool, settings: Settings) -> bytes:
    if chosen:
        pixels = convolve_image(pixels, filt, settings.grayscale)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., ::-1])).save(
        buffer, **SAVE_OPTIONS[settings.image_format]
    )
    return buffer.getvalue()


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Make a folder, and keep other processes from writing to it until this one ends."""
    if output.is_file():
        raise ProtectionError(f'The output {output} is a file; name a folder.')
    output.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ProtectionError(
                f'Another process is writing to {output}; wait for it, or stop it.'
            ) from None
        except OSError:
            pass  # network file systems without locks of folders
        yield
    finally:
        os.close(descriptor)


def _begin(wanted: dict, names: Sequence[str], output: Path, key: Key) -> dict:
    """The manifest of an earlier call, no longer complete, or a new one in an empty folder."""
    if (output / MANIFEST).is_file():
        manifest = read_manifest(output)
        check_same(manifest, wanted, key, output)
        _check_kinds(names, output)
        _remove_remains({(output / name).parent for name in names} | {output})
        if manifest['complete']:
            manifest['complete'] = False
            write_manifest(manifest, output)
        return manifest
    # A call that was killed early may have left nothing but an unfinished manifest.
    _remove_remains([output], f'.{MANIFEST}.*.tmp')
    if any(output.iterdir()):
        raise ProtectionError(
            f'The output folder {output} is not empty and holds no {MANIFEST}; nothing is '
            'overwritten. Name a new folder.'
        )
    manifest = new_manifest(wanted, key)
    write_manifest(manifest, output)
    return manifest


def _check_kinds(names: Sequence[str], output: Path) -> None:
    """Refuse folders where files belong, and files where folders do."""
    folders = {parent for name in names for parent in PurePosixPath(name).parents}
    wrong = [name for name in (*names, TABLE, JOURNAL) if (output / name).is_dir()]
    wrong += [str(folder) for folder in sorted(folders) if (output / folder).is_file()]
    if wrong:
        raise ProtectionError(
            f'{output} has folders where files belong, or files where folders do: {some(wrong)}. '
            'Remove them.'
        )


def _remove_remains(folders: Iterable[Path], pattern: str = '.*.tmp') -> None:
    """Delete the unfinished files of a call that was killed."""
    for folder in folders:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _in_parallel(function: Callable, number: int, workers: int, progress: bool, title: str) -> list:
    pool = ThreadPoolExecutor(workers)
    try:
        results = pool.map(function, range(number))
        bar = tqdm(results, title, number, disable=None if progress else True, unit='images')
        return list(bar)
    finally:
        # An interrupted call must not go on with the images that are still to come.
        pool.shutdown(cancel_futures=True)
