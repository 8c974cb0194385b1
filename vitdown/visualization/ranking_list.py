"""Pictures of ranking lists: a query and the gallery images that rank first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

QUERY_COLOUR: Colour = (40, 90, 200)
RIGHT_COLOUR: Colour = (30, 150, 60)
WRONG_COLOUR: Colour = (205, 40, 40)
UNKNOWN_COLOUR: Colour = (120, 120, 120)
_TEXT_COLOUR: Colour = (30, 30, 30)
_FRAME = 4
_GAP = 6
_LINE_HEIGHT = 14
_NAME_BYTES = 120


def draw_ranking_list(
    query: np.ndarray,
    gallery: Sequence[np.ndarray],
    matches: Sequence[bool | None],
    query_caption: Sequence[str] = (),
    gallery_captions: Sequence[Sequence[str]] = (),
    size: tuple[int, int] = (160, 80),
) -> Image.Image:
    """Draw one ranking list: the query, then the gallery images in their order.

    The query is framed blue, right images green and wrong ones red; a tick or a cross in the corner
    says the same to readers who don't tell these colours apart.

    Args:
        query: Image (H, W, 3), RGB, or (H, W) or (H, W, 1), grey; uint8.
        gallery: Images likewise, best first; may be empty.
        matches: Whether each gallery image shows the query's identity; None where that is not
            known, which is framed grey.
        query_caption: Lines of text below the query.
        gallery_captions: Lines of text below each gallery image; empty for none at all.
        size: ``(H, W)`` of each picture in pixels; images are fitted in with their aspect kept.

    Returns:
        The picture, RGB.

    Raises:
        ValueError: If the numbers of images, matches and captions differ.
    """
    if len(gallery) != len(matches) or (gallery_captions and len(gallery) != len(gallery_captions)):
        raise ValueError(
            f'{len(gallery)} gallery images, {len(matches)} matches and '
            f'{len(gallery_captions)} captions do not fit one another'
        )
    captions = [query_caption, *(gallery_captions or [()] * len(gallery))]
    height, width = size
    text_height = _LINE_HEIGHT * max(len(lines) for lines in captions)
    cell_width, cell_height = width + 2 * _FRAME, height + 2 * _FRAME
    # A wider gap sets the query apart.
    total_width = (1 + len(gallery)) * (cell_width + _GAP) + 2 * _GAP
    picture = Image.new('RGB', (total_width, cell_height + text_height + 2 * _GAP), 'white')
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=11)

    left = _GAP
    for index, (image, lines) in enumerate(zip([query, *gallery], captions)):
        match = None if index == 0 else matches[index - 1]
        if index == 0:
            colour = QUERY_COLOUR
        elif match is None:
            colour = UNKNOWN_COLOUR
        else:
            colour = RIGHT_COLOUR if match else WRONG_COLOUR
        box = (left, _GAP, left + cell_width - 1, _GAP + cell_height - 1)
        draw.rectangle(box, outline=colour, width=_FRAME)
        picture.paste(_fit(image, size), (left + _FRAME, _GAP + _FRAME))
        if match is not None:
            _draw_mark(draw, match, left + cell_width - 1, _GAP, colour)
        for number, line in enumerate(lines):
            top = _GAP + cell_height + number * _LINE_HEIGHT
            draw.text((left + 1, top), line, fill=_TEXT_COLOUR, font=font)
        left += cell_width + (2 * _GAP if index == 0 else _GAP)
    return picture


def save_picture(picture: Image.Image, out_dir: str | os.PathLike, name: str) -> Path:
    """Save a picture as PNG in a folder, which is made if need be.

    Args:
        picture: What to save.
        out_dir: The folder.
        name: Any text, e.g. the path of the query; only its last part is used, without characters
            that file systems reject. A picture of that name is replaced.

    Returns:
        The file.
    """
    stem = Path(name.replace('\\', '/')).stem
    stem = ''.join(c if c.isalnum() or c in '._-' else '_' for c in stem)
    # File systems limit the bytes of a name, not its characters.
    stem = stem.encode()[:_NAME_BYTES].decode(errors='ignore')
    stem = stem.strip('.') or 'query'
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / f'{stem}.png'
    picture.save(path)
    return path


def _fit(image: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Scale an image into ``size`` (H, W) with its aspect kept, on grey."""
    height, width = size
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    source = Image.fromarray(np.ascontiguousarray(image)).convert('RGB')
    scale = min(height / source.height, width / source.width)
    fitted = source.resize(
        (max(1, round(source.width * scale)), max(1, round(source.height * scale))),
        Image.Resampling.BICUBIC,
    )
    canvas = Image.new('RGB', (width, height), (200, 200, 200))
    canvas.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))
    return canvas


def _draw_mark(
    draw: ImageDraw.ImageDraw, match: bool, right: int, top: int, colour: Colour
) -> None:
    """A white tick or cross on a coloured square in the upper right corner."""
    side = 14
    x, y = right - side, top
    draw.rectangle((x, y, right, y + side), fill=colour)
    if match:
        draw.line([(x + 3, y + 7), (x + 6, y + 10), (x + 11, y + 4)], fill='white', width=2)
    else:
        draw.line([(x + 4, y + 4), (x + 10, y + 10)], fill='white', width=2)
        draw.line([(x + 10, y + 4), (x + 4, y + 10)], fill='white', width=2)
