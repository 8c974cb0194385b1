"""Vehicle-like figures."""

from __future__ import annotations

import math

import numpy as np

from .canvas import MARKS, Canvas, Colour, Point, shade
from .identity import Identity, Part, Slot

WIDTH, HEIGHT = 96.0, 96.0

_FRONT_REAR = ('front', 'rear')

COARSE_CHOICES = {
    'body': (
        (168, 170, 174),
        (92, 96, 104),
        (48, 62, 106),
        (126, 42, 46),
        (186, 176, 150),
        (58, 92, 84),
        (112, 140, 168),
        (216, 216, 212),
    ),
    'glass': ((52, 64, 76), (86, 106, 118)),
    'tyre': ((30, 30, 34),),
    'shape': ('hatchback', 'saloon', 'van', 'pickup'),
}

SLOTS = {
    'roof': Slot(('rails', 'box', 'bars', 'lamp', 'aerial'), ground='body', absent=0.25),
    'door': Slot(MARKS, ground='body', sides=_FRONT_REAR, absent=0.1),
    'stripe': Slot(('sill', 'double', 'dashes', 'chequer', 'wave'), ground='body', absent=0.25),
    'rims': Slot(('spokes', 'disc', 'cross', 'ring'), ground='tyre'),
    'window': Slot(('band', *MARKS[:5]), ground='glass', sides=_FRONT_REAR, absent=0.35),
    'bumper': Slot(('low', 'block'), ground='body', sides=('front', 'rear', 'both'), absent=0.3),
    'panel': Slot(
        ('1011', '1101', '1001', '1110', '0111', '0110'),
        ground='body',
        sides=_FRONT_REAR,
        absent=0.3,
    ),
    'mirror': Slot(('mirror', 'handles'), ground='body', absent=0.4),
    'bonnet': Slot(('scoop', 'tip', 'patch'), ground='body', absent=0.4),
}

# Side views that face right: outline of the body above the sill, then window outlines.
_OUTLINES: dict[str, list[Point]] = {
    'hatchback': [
        (5, 70), (4, 54), (9, 45), (19, 28), (26, 25), (52, 25), (67, 44), (86, 49), (91, 56),
        (91, 70),
    ],
    'saloon': [
        (4, 70), (4, 52), (8, 47), (20, 45), (32, 28), (38, 26), (56, 26), (70, 45), (87, 49),
        (92, 56), (92, 70),
    ],
    'van': [
        (5, 70), (4, 26), (8, 20), (62, 20), (68, 23), (79, 43), (88, 48), (92, 56), (92, 70),
    ],
    'pickup': [
        (4, 70), (4, 48), (36, 48), (38, 28), (42, 25), (60, 25), (70, 45), (88, 49),
        (92, 56), (92, 70),
    ],
}  # fmt: skip
_WINDOWS: dict[str, dict[str, list[Point]]] = {
    'hatchback': {
        'rear': [(15, 44), (23, 30), (38, 30), (38, 44)],
        'front': [(41, 44), (41, 30), (51, 30), (62, 44)],
    },
    'saloon': {
        'rear': [(27, 44), (36, 31), (46, 31), (46, 44)],
        'front': [(49, 44), (49, 31), (55, 31), (65, 44)],
    },
    'van': {
        'rear': [(11, 42), (11, 26), (42, 26), (42, 42)],
        'front': [(47, 42), (47, 26), (63, 26), (73, 42)],
    },
    'pickup': {
        'rear': [(41, 44), (42, 30), (49, 30), (49, 44)],
        'front': [(52, 44), (52, 30), (58, 30), (66, 44)],
    },
}
_ROOFS = {
    'hatchback': (26, 52, 25),
    'saloon': (38, 56, 26),
    'van': (12, 62, 20),
    'pickup': (42, 60, 25),
}
_WHEELS = (23.0, 73.0)
_DOORS = {'rear': 37.0, 'front': 55.0}
_PANELS = {'rear': (7.0, 51.0), 'front': (81.0, 54.0)}
_BUMPERS = {'rear': (2.5, 11.0), 'front': (85.0, 93.5)}


def draw(rng: np.random.Generator, identity: Identity, scale: float) -> Canvas:
    """Draw a vehicle from either side; both sides carry the same marks.

    Args:
        rng: Source of the viewpoint and of how far the wheels have turned.
        identity: Which vehicle is drawn.
        scale: Pixels per unit; the figure is 96 x 96 units.
    """
    canvas = Canvas(WIDTH, HEIGHT, scale, mirror=bool(rng.random() < 0.5))
    coarse, parts = identity.coarse, identity.parts
    body, shape = coarse['body'], coarse['shape']

    canvas.ellipse(48, 80, 46, 3.2, (40, 40, 42))
    _roof(canvas, parts['roof'], _ROOFS[shape])
    canvas.polygon(_OUTLINES[shape], body)
    canvas.line([(6, 70), (90, 70)], 5.0, shade(body, 0.55))
    canvas.line([(6, 47.5), (86, 50.5)], 0.9, shade(body, 1.5))
    for name, outline in _WINDOWS[shape].items():
        canvas.polygon(outline, coarse['glass'])
        _window(canvas, parts['window'], name, outline, coarse['glass'])
    for x in (30.0, 46.5, 65.0):
        canvas.line([(x, 47), (x, 67)], 0.7, shade(body, 0.7))

    _lights(canvas)
    _stripe(canvas, parts['stripe'])
    _door(canvas, parts['door'], body)
    _panel(canvas, parts['panel'])
    _bumpers(canvas, parts['bumper'])
    _bonnet(canvas, parts['bonnet'])
    _trim(canvas, parts['mirror'], shade(body, 0.6))
    turn = float(rng.uniform(0, 2 * math.pi))
    for x in _WHEELS:
        _wheel(canvas, x, parts['rims'], coarse['tyre'], body, turn)
    return canvas


def _wheel(canvas: Canvas, x: float, part: Part, tyre: Colour, body: Colour, turn: float) -> None:
    y = 71.0
    canvas.ellipse(x, y, 11.6, 11.6, shade(body, 0.4))
    canvas.ellipse(x, y, 10.2, 10.2, tyre)
    canvas.ellipse(x, y, 6.8, 6.8, (92, 94, 98))
    if part.style == 'disc':
        canvas.ellipse(x, y, 6.4, 6.4, part.colour)
        canvas.ellipse(x, y, 1.8, 1.8, tyre)
    elif part.style == 'ring':
        canvas.ellipse(x, y, 7.6, 7.6, part.colour)
        canvas.ellipse(x, y, 4.8, 4.8, tyre)
    else:
        arms = 5 if part.style == 'spokes' else 4
        for i in range(arms):
            angle = turn + 2 * math.pi * i / arms
            tip = (x + 6.4 * math.cos(angle), y + 6.4 * math.sin(angle))
            canvas.line([(x, y), tip], 2.0 if arms == 5 else 3.4, part.colour)
    canvas.ellipse(x, y, 1.3, 1.3, (200, 200, 204))


def _roof(canvas: Canvas, part: Part | None, roof: tuple[float, float, float]) -> None:
    if part is None:
        return
    left, right, y = roof
    middle = (left + right) / 2
    if part.style == 'rails':
        canvas.line(
            [(left, y), (left + 2, y - 3), (right - 2, y - 3), (right, y)], 1.8, part.colour
        )
    elif part.style == 'box':
        canvas.line([(middle - 7, y - 4), (middle + 7, y - 4)], 5.5, part.colour)
    elif part.style == 'bars':
        for x in (left + 3, middle, right - 3):
            canvas.rectangle(x - 1.6, y - 5, x + 1.6, y + 1, part.colour)
    elif part.style == 'lamp':
        canvas.ellipse(middle, y, 4.2, 4.6, part.colour)
        canvas.rectangle(middle - 5, y - 1, middle + 5, y + 1, (60, 60, 64))
    else:
        canvas.line([(left + 3, y), (left - 3, y - 10)], 1.5, part.colour)
        canvas.ellipse(left - 3, y - 10, 2.0, 2.0, part.colour)


def _window(
    canvas: Canvas, part: Part | None, name: str, outline: list[Point], glass: Colour
) -> None:
    bottom = max(y for _, y in outline)
    if part is None or part.side != name:
        return
    xs = [x for x, y in outline if y == bottom]
    if part.style == 'band':
        canvas.rectangle(min(xs) + 1, bottom - 3.8, max(xs) - 1, bottom - 0.6, part.colour)
    else:
        x = sum(x for x, _ in outline) / len(outline)
        canvas.mark(part.style, x, bottom - 6.0, 4.0, part.colour, glass)


def _lights(canvas: Canvas) -> None:
    canvas.rectangle(86, 51, 91, 56, (250, 238, 190))
    canvas.rectangle(4, 50, 7.5, 57, (176, 30, 30))


def _stripe(canvas: Canvas, part: Part | None) -> None:
    if part is None:
        return
    if part.style == 'sill':
        canvas.rectangle(5, 63.5, 91, 67, part.colour)
    elif part.style == 'double':
        for y in (61.5, 65.5):
            canvas.rectangle(5, y - 1, 91, y + 1, part.colour)
    elif part.style == 'dashes':
        for x in range(8, 90, 9):
            canvas.rectangle(x, 63, x + 5, 66.4, part.colour)
    elif part.style == 'chequer':
        for i, x in enumerate(range(35, 61, 3)):
            y = 61.5 if i % 2 else 64.5
            canvas.rectangle(x, y, x + 3, y + 3, part.colour)
    else:
        points = [(x, 64.5 + 2.2 * math.sin((x - 33) / 4.2)) for x in range(33, 63)]
        canvas.line(points, 2.2, part.colour)


def _door(canvas: Canvas, part: Part | None, body: Colour) -> None:
    if part is not None:
        canvas.mark(part.style, _DOORS[part.side], 54.5, 5.2, part.colour, body)


def _panel(canvas: Canvas, part: Part | None) -> None:
    """A plate with a code of bars that reads the same way on both sides."""
    if part is None:
        return
    x, y = _PANELS[part.side]
    x += 3 if part.side == 'rear' else -6
    canvas.rectangle(x - 0.8, y - 0.8, x + 9.6, y + 7.2, (232, 232, 226))
    code = reversed(part.style) if canvas.mirror else part.style
    for i, bit in enumerate(code):
        if bit == '1':
            canvas.rectangle(x + i * 2.3, y, x + i * 2.3 + 1.8, y + 6.4, part.colour)


def _bumpers(canvas: Canvas, part: Part | None) -> None:
    if part is None:
        return
    for side in _FRONT_REAR if part.side == 'both' else (part.side,):
        left, right = _BUMPERS[side]
        canvas.rectangle(left, 62 if part.style == 'block' else 67, right, 71.5, part.colour)


def _bonnet(canvas: Canvas, part: Part | None) -> None:
    if part is None:
        return
    if part.style == 'scoop':
        canvas.line([(73, 44.5), (80, 46.2)], 3.6, part.colour)
    elif part.style == 'tip':
        canvas.line([(84, 48.6), (90.5, 50)], 2.6, part.colour)
        canvas.ellipse(91, 47, 1.7, 2.6, part.colour)
    else:
        canvas.polygon([(68, 46), (84, 49.2), (83, 54), (68, 52)], part.colour)


def _trim(canvas: Canvas, part: Part | None, plain: Colour) -> None:
    mirror = part.colour if part is not None and part.style == 'mirror' else plain
    handle = part.colour if part is not None and part.style == 'handles' else plain
    canvas.ellipse(67, 44.5, 3.0, 2.4, mirror)
    for x in (32.0, 48.5):
        canvas.line([(x, 49), (x + 4, 49)], 1.9, handle)
