"""Images as users name them: files, folders, patterns, addresses, arrays."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from vitdown.datasets.files import IMAGE_SUFFIXES
from vitdown.datasets.transforms.decoding import pillow_to_bgr

ImageInput: TypeAlias = str | os.PathLike | np.ndarray | Image.Image
Sample = dict[str, Any]


def list_images(inputs: ImageInput | Sequence[ImageInput]) -> list[Sample]:
    """Samples for a re-ID pipeline.

    Args:
        inputs: One of these, or a sequence of them: an image file; a folder, of which all image
            files are taken, those of its folders too, sorted; a pattern with ``*``, ``?`` or
            ``[...]``, where ``**`` stands for any folders; an address that MMEngine reads
            (``http://``, ``s3://`` ...); an array (H, W, 3), BGR, or (H, W), grey; a Pillow image.

    Returns:
        list[dict]: ``img_path`` names the image, ``img`` holds the pixels of arrays. Files that are
        named one by one are not looked at here.

    Raises:
        FileNotFoundError: If a folder or a pattern has no image.
        TypeError: If an input is something else.
        ValueError: If there is no input, or a Pillow image has floating-point pixels.
    """
    entries: Sequence[Any] = [inputs]
    if isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes)):
        entries = inputs
    samples: list[Sample] = []
    for entry in entries:
        if isinstance(entry, (str, os.PathLike)):
            samples += [{'img_path': path} for path in _expand(os.fspath(entry))]
        elif isinstance(entry, np.ndarray):
            samples.append({'img_path': f'array {len(samples)}', 'img': entry})
        elif isinstance(entry, Image.Image):
            name = getattr(entry, 'filename', '') or f'image {len(samples)}'
            samples.append({'img_path': name, 'img': pillow_to_bgr(entry)})
        else:
            raise TypeError(
                f'input {len(samples)} is a {type(entry).__name__}: give paths, addresses, arrays '
                'or Pillow images'
            )
    if not samples:
        raise ValueError('there is no image: the list of inputs is empty')
    return samples


def _expand(text: str) -> list[str]:
    if text.startswith('file://'):
        return _expand(unquote(urlsplit(text).path))
    if '://' in text or os.path.isfile(text):
        return [text]
    if os.path.isdir(text):
        found = _images(path for path in Path(text).rglob('*'))
        if not found:
            raise FileNotFoundError(f'{text} holds no image file ({", ".join(IMAGE_SUFFIXES)})')
        return found
    if glob.has_magic(text):
        found = _images(Path(path) for path in glob.glob(text, recursive=True))
        if not found:
            raise FileNotFoundError(f'no image file matches {text}')
        return found
    return [text]


def _images(paths: Iterable[Path]) -> list[str]:
    return sorted(
        str(path) for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
