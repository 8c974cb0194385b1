"""The table of a protected copy, and names of files that it can hold."""

import csv
import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from ..base import JUNK_IDENTITY
from ..custom import enumerate_names
from .settings import ProtectionError, Settings, SourceImage, some

TABLE = 'train.csv'


def output_names(images: Sequence[SourceImage], settings: Settings) -> list[str]:
    """Names of the files that images become, below the output folder, with ``/``.

    Raises:
        ProtectionError: There are no images, two would become one file, or readers of the table
            would not find the same files and classes.
    """
    if not images:
        raise ProtectionError('There are no images to protect.')
    unprintable = [image.name for image in images if not _is_utf8(image.name)]
    if unprintable:
        raise ProtectionError(
            f'{len(unprintable)} file names are not UTF-8, which the table needs: '
            f'{some([ascii(name) for name in unprintable])}. Rename them.'
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


def table_of(images: Sequence[SourceImage], names: Sequence[str]) -> bytes:
    """Content of the table, see :class:`CSVReIDDataset`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['image', 'identity', 'camera', 'view', 'subset'])
    for image, name in zip(images, names):
        writer.writerow([name, image.identity, image.camera, image.view, 'train'])
    return text.getvalue().encode()


def _check_table(images: Sequence[SourceImage], names: Sequence[str]) -> None:
    """Readers of the table must find the same images and classes."""
    padded = [name for name in names if name != name.strip()]
    if padded:
        raise ProtectionError(
            f'{len(padded)} file names begin or end with white space, which the table can not '
            f'keep: {some([repr(name) for name in padded])}. Rename them.'
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


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
