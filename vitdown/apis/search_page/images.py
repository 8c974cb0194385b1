"""Pictures that come from and go to a browser."""

from __future__ import annotations

import base64
import io
import secrets
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from vitdown.datasets.transforms.decoding import pillow_to_bgr

_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP')
# Phones write JPEGs with more pictures behind the first, which Pillow calls MPO.
_SUFFIXES = {'JPEG': '.jpg', 'MPO': '.jpg', 'PNG': '.png', 'WEBP': '.webp', 'BMP': '.bmp'}
_MAX_SIDE = 512


class UploadError(ValueError):
    """An upload that is no picture, or too large a one."""


def decode_upload(data: bytes, max_pixels: int) -> tuple[np.ndarray, str]:
    """Pixels of an uploaded picture and the ending of its format.

    The size is taken from the head of the file, before any pixel is decoded, so that a small file
    can't fill the memory.

    Args:
        data (bytes): The file.
        max_pixels (int): Width times height.

    Returns:
        tuple: (H, W, 3) uint8, BGR; and ``'.jpg'``, ``'.png'`` ...

    Raises:
        UploadError: If it is no JPEG, PNG, WebP or BMP file, is damaged, or has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own limits lie above any that makes sense here.
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise Image.DecompressionBombError
                pixels, kind = pillow_to_bgr(image), image.format
    except Image.DecompressionBombError:
        raise UploadError(
            f'the picture has more than {max_pixels / 1e6:g} million pixels: make it smaller'
        ) from None
    # Decoders fail on damaged files with many types.
    except Exception:
        raise UploadError('the file is no JPEG, PNG, WebP or BMP picture, or damaged') from None
    return pixels, _SUFFIXES[kind]


class RecentUploads:
    """The last pictures that were uploaded: they can be searched again without being sent again.

    Args:
        max_bytes (int): Size of all files together; the oldest make room.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._files: dict[str, bytes] = {}

    def keep(self, data: bytes) -> str:
        """Keep a file, under a name that nobody can guess."""
        name = secrets.token_urlsafe(16)
        self._files[name] = data
        while sum(map(len, self._files.values())) > self.max_bytes:
            del self._files[next(iter(self._files))]
        return name

    def get(self, name: str) -> bytes | None:
        """The file of a name, None if it is not kept any more."""
        return self._files.get(name)


def resolve_image(path: str, root: Path) -> Path | None:
    """The file that a gallery's ``path`` means; None if it means an address or is not there."""
    if '://' in path:
        return None
    file = root / path
    return file if file.is_file() else None


def thumbnail(pixels: np.ndarray) -> bytes:
    """A small JPEG of an RGB picture."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    stream = io.BytesIO()
    image.save(stream, 'JPEG', quality=88)
    return stream.getvalue()


def data_uri(jpeg: bytes) -> str:
    """A picture inside a page, for those that no address has."""
    return 'data:image/jpeg;base64,' + base64.b64encode(jpeg).decode()
