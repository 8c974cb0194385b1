"""What is to be protected and how: the images of a source, and the settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .filters import check_filter_options, check_protection_size

#: Formats of the output, with the options by which Pillow saves them
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    'png': dict(format='PNG', compress_level=6),
    'webp': dict(format='WEBP', lossless=True),
    'bmp': dict(format='BMP'),
    'jpeg': dict(format='JPEG', quality=95, subsampling=0),
}
FORMATS = tuple(SAVE_OPTIONS)
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
        path: File that it is read from, if it is one of its own.
    """

    name: str
    label: int
    identity: int | str
    read: Callable[[], np.ndarray]
    camera: int | str = -1
    view: int | str = -1
    path: str | None = None


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
            check_protection_size(self.kernel_size)
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


def some(names: Sequence[str]) -> str:
    """The first of many names, for messages."""
    return ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
