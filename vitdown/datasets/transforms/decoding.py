"""Decoding of image files into 8-bit, 3-channel BGR arrays."""

import io
from pathlib import Path

import cv2
import numpy as np
from mmengine import fileio
from mmengine.fileio.backends import prefix_to_backends
from PIL import Image, ImageOps, UnidentifiedImageError

SKIP_HINT = "Restore the file, or build the dataset with corrupt='skip' to leave such images out."


class CorruptImageError(OSError):
    """An image file that is missing, empty, truncated or not an image."""


def to_bgr_uint8(img: np.ndarray, name: str = 'image') -> np.ndarray:
    """Bring an array of 1, 3 or 4 channels to BGR, 8 bits.

    Args:
        img: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) array, uint8 or uint16, channels in the
            order B, G, R (, alpha). Of 16 bits the upper eight are kept; alpha is dropped.
        name: What the error message calls the image.

    Returns:
        (H, W, 3) uint8 array.

    Raises:
        ValueError: Another shape or data type, or no pixels.
    """
    if img.dtype == np.uint16:
        img = (img >> 8).astype(np.uint8)
    if img.dtype != np.uint8:
        raise ValueError(f'{name}: pixels are {img.dtype}, expected uint8 or uint16.')
    if img.ndim == 2:
        img = img[..., None]
    if img.ndim != 3 or img.shape[2] not in (1, 3, 4):
        raise ValueError(f'{name}: array of shape {img.shape} is no image of 1, 3 or 4 channels.')
    if not img.size:
        raise ValueError(f'{name}: array of shape {img.shape} has no pixels.')
    if img.shape[2] == 1:
        return np.repeat(img, 3, axis=2)
    return np.ascontiguousarray(img[..., :3])


def pillow_to_bgr(img: Image.Image) -> np.ndarray:
    """Pixels of a Pillow image of any mode, turned as its EXIF orientation says.

    Returns:
        (H, W, 3) uint8 array, BGR. Of 16 bits the upper eight are kept; alpha is dropped.

    Raises:
        ValueError: The pixels are floating-point numbers.
    """
    img = ImageOps.exif_transpose(img)
    if img.mode == 'I' or img.mode.startswith('I;16'):
        # Pillow would clip 16-bit grey to 255 instead of scaling it.
        return to_bgr_uint8(np.clip(np.asarray(img), 0, 65535).astype(np.uint16))
    if img.mode == 'F':
        raise ValueError('floating-point pixels have no defined white level')
    return np.ascontiguousarray(np.asarray(img.convert('RGB'))[..., ::-1])


def _decode_pillow(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as img:
            return pillow_to_bgr(img)
    except UnidentifiedImageError:
        # Pillow's own message is the address of an object.
        raise ValueError('Pillow knows no such format') from None


def _decode_cv2(data: bytes) -> np.ndarray:
    img = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if img is None:
        raise ValueError('OpenCV knows no such format')
    return img


DECODERS = {'pillow': _decode_pillow, 'cv2': _decode_cv2}


def decode_image(data: bytes, name: str, backend: str = 'pillow') -> np.ndarray:
    """Decode an encoded image.

    Grey, palette, CMYK, 16-bit and RGBA images become 8-bit BGR (alpha is dropped), and the
    EXIF orientation is applied.

    Args:
        data: The file's bytes.
        name: The file's name, for error messages.
        backend: ``'pillow'``, or ``'cv2'``, which is a little faster but fills the missing part
            of a truncated JPEG with grey instead of refusing it.

    Returns:
        (H, W, 3) uint8 array, BGR.

    Raises:
        CorruptImageError: The bytes are empty, truncated or no image.
    """
    if not len(data):
        raise CorruptImageError(f'Cannot read {name}: the file is empty (0 bytes). {SKIP_HINT}')
    try:
        return DECODERS[backend](data)
    # Decoders fail on damaged files with many types, from SyntaxError to struct.error.
    except Exception as error:
        raise CorruptImageError(
            f'Cannot decode {name}: the file is truncated or not an image '
            f'({type(error).__name__}: {error}). {SKIP_HINT}'
        ) from error


def read_bytes(path: str, backend_args: dict | None = None) -> bytes:
    """Read a file through MMEngine's file backends (local disk by default).

    Raises:
        CorruptImageError: No such file, or it cannot be read.
        ValueError: An address of a kind that MMEngine has no backend for.
    """
    scheme, found, _ = path.partition('://')
    if found and backend_args is None and scheme not in prefix_to_backends:
        known = ', '.join(f'{name}://' for name in sorted(prefix_to_backends) if name)
        raise ValueError(f'Cannot read {path}: addresses begin with {known}')
    try:
        return fileio.get(path, backend_args=backend_args)
    except FileNotFoundError as error:
        hint = '' if Path(path).is_absolute() else f' (relative to {Path.cwd()})'
        raise CorruptImageError(f'No such image file: {path}{hint}. {SKIP_HINT}') from error
    except OSError as error:
        raise CorruptImageError(f'Cannot read {path}: {error}. {SKIP_HINT}') from error
