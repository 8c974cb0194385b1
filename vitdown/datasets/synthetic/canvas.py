"""A drawing surface in picture units, and the small marks drawn on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

MARKS = ('disc', 'square', 'diamond', 'triangle', 'star', 'cross', 'ring', 'chevron')


def _colour(values: Iterable[float]) -> Colour:
    red, green, blue = map(round, values)
    return red, green, blue


def shade(colour: Colour, factor: float) -> Colour:
    """Darken (``factor < 1``) or lighten (``factor > 1``) a colour."""
    if factor <= 1:
        return _colour(value * factor for value in colour)
    return _colour(255 - (255 - value) / factor for value in colour)


class Canvas:
    """Transparent picture that is drawn on in units, independent of its resolution.

    Args:
        width: Width in units.
        height: Height in units.
        scale: Pixels per unit.
        mirror: Reflect x coordinates, so that what is drawn faces the other way. Marks keep
            their own orientation: lettering is not reflected on the other side of a car.
        background: Fill; transparent if None.
    """

    def __init__(
        self,
        width: float,
        height: float,
        scale: float,
        mirror: bool = False,
        background: Colour | None = None,
    ) -> None:
        self.width, self.height, self.scale, self.mirror = width, height, scale, mirror
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        fill = (0, 0, 0, 0) if background is None else (*background, 255)
        self.image = Image.new('RGBA', size, fill)
        self._draw = ImageDraw.Draw(self.image)

    def _pixel(self, point: Point) -> Point:
        x = self.width - point[0] if self.mirror else point[0]
        return x * self.scale, point[1] * self.scale

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self._draw.polygon([self._pixel(point) for point in points], fill=(*colour, 255))

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        cx, cy = self._pixel((x, y))
        rx, ry = rx * self.scale, ry * self.scale
        self._draw.ellipse([cx - rx, cy - ry, cx + rx, cy + ry], fill=(*colour, 255))

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draw a line with round joints and ends."""
        pixels = [self._pixel(point) for point in points]
        fill = (*colour, 255)
        self._draw.line(pixels, fill=fill, width=max(1, round(width * self.scale)), joint='curve')
        radius = width * self.scale / 2
        for x, y in (pixels[0], pixels[-1]):
            self._draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)

    def mark(
        self,
        shape: str,
        x: float,
        y: float,
        radius: float,
        colour: Colour,
        ground: Colour,
        squeeze: float = 1.0,
    ) -> None:
        """Draw one of :data:`MARKS` centred at (x, y).

        Args:
            shape: Name of the mark.
            x: Centre, in units.
            y: Centre, in units.
            radius: Half its extent, in units.
            colour: Its colour.
            ground: Colour that shows through the hole of a ring.
            squeeze: Horizontal foreshortening, 1 when it is seen from the front.
        """
        if shape in ('disc', 'ring'):
            self.ellipse(x, y, radius * squeeze, radius, colour)
            if shape == 'ring':
                self.ellipse(x, y, radius * squeeze * 0.5, radius * 0.5, ground)
            return
        outline = [(x + px * radius * squeeze, y + py * radius) for px, py in _outline(shape)]
        if self.mirror:  # cancels the reflection of _pixel
            outline = [(2 * x - px, py) for px, py in outline]
        self.polygon(outline, colour)


def _outline(shape: str) -> list[Point]:
    """Corners of a mark in [-1, 1]^2."""
    if shape == 'square':
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == 'diamond':
        return [(0, -1.1), (0.9, 0), (0, 1.1), (-0.9, 0)]
    if shape == 'triangle':
        return [(0, -1.05), (1.05, 0.85), (-1.05, 0.85)]
    if shape == 'cross':
        a = 0.35
        corners = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)]
        return corners + [(-x, -y) for x, y in corners]
    if shape == 'chevron':
        return [(-1, -0.9), (0, -0.1), (1, -0.9), (1, 0.1), (0, 0.95), (-1, 0.1)]
    if shape == 'star':
        return [
            (radius * math.sin(i * math.pi / 5), -radius * math.cos(i * math.pi / 5))
            for i, radius in enumerate((1.2, 0.5) * 5)
        ]
    raise ValueError(f'unknown mark {shape!r}; choose from {MARKS}')
