"""Person-like figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .canvas import MARKS, Canvas, Colour, shade
from .identity import Identity, Part, Slot

WIDTH, HEIGHT = 64.0, 128.0

_LEFT_RIGHT = ('left', 'right')

COARSE_CHOICES = {
    'top': (
        (44, 54, 92),
        (84, 88, 96),
        (116, 48, 56),
        (98, 104, 70),
        (176, 158, 128),
        (92, 122, 148),
        (150, 152, 156),
        (60, 108, 104),
    ),
    'bottom': ((46, 58, 88), (40, 40, 46), (142, 126, 98), (96, 98, 104), (88, 66, 54)),
    'hair': ((36, 28, 26), (98, 64, 38), (188, 150, 92), (134, 130, 128)),
    'skin': ((236, 196, 166), (204, 152, 116), (138, 92, 66)),
    'floor': ((128, 128, 128),),
    'sleeves': ('long', 'short'),
    'hem': ('jacket', 'coat'),
    'breadth': (0.92, 1.0, 1.1),
}

SLOTS = {
    'headwear': Slot(('cap', 'band', 'beanie'), ground='hair', absent=0.45),
    'collar': Slot(('vee', 'scarf', 'tie', 'zip'), ground='top', absent=0.3),
    'badge': Slot(MARKS, ground='top', sides=_LEFT_RIGHT, absent=0.1),
    'print': Slot(
        ('stripe', 'stripes', 'bars', 'slash', 'chequer', *MARKS[:5]), ground='top', absent=0.2
    ),
    'sleeve': Slot(
        ('cuff', 'band', 'bands', 'patch'),
        ground='top',
        sides=('left', 'right', 'both'),
        absent=0.3,
    ),
    'bag': Slot(('satchel', 'backpack', 'handbag'), ground='top', sides=_LEFT_RIGHT, absent=0.35),
    'belt': Slot(('belt', 'buckle', 'pouch'), ground='bottom', absent=0.4),
    'leg': Slot(
        ('seam', 'knee', 'ring'), ground='bottom', sides=('left', 'right', 'both'), absent=0.3
    ),
    'shoes': Slot(('shoe', 'boot', 'sole'), ground='floor'),
}


@dataclass(frozen=True)
class Pose:
    """How a person stands: turn in radians, seen from behind, step and arm swing in [-1, 1]."""

    yaw: float
    back: bool
    step: float
    swing: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Pose:
        return cls(
            yaw=float(rng.uniform(-0.65, 0.65)),
            back=bool(rng.random() < 0.3),
            step=float(rng.uniform(-1, 1)),
            swing=float(rng.uniform(-1, 1)),
        )


def draw(rng: np.random.Generator, identity: Identity, scale: float) -> Canvas:
    """Draw a person in a random pose.

    From behind, left and right change places; prints and badges are on both sides of the clothes.

    Args:
        rng: Source of the pose.
        identity: Who is drawn.
        scale: Pixels per unit; the figure is 64 x 128 units.
    """
    return _Figure(Canvas(WIDTH, HEIGHT, scale), identity, Pose.draw(rng)).draw()


class _Figure:
    """One drawing of a person. +1 names the side at the right of the picture."""

    def __init__(self, canvas: Canvas, identity: Identity, pose: Pose) -> None:
        self.canvas, self.pose = canvas, pose
        self.parts, self.coarse = identity.parts, identity.coarse
        self.middle = WIDTH / 2
        self.chest = 12.5 * self.coarse['breadth'] * (1 - 0.18 * abs(math.sin(pose.yaw)))
        self.hem_y = 80.0 if self.coarse['hem'] == 'coat' else 68.0

    def draw(self) -> Canvas:
        if not self.pose.back:
            self._backpack_behind()
        for side in self._far_to_near():
            self._leg(side)
        self._torso()
        self._print()
        self._badge()
        self._belt()
        self._bag_on_torso()
        self._head()
        self._collar()
        for side in self._far_to_near():
            self._arm(side)
        return self.canvas

    def _far_to_near(self) -> tuple[int, int]:
        return (-1, 1) if self.pose.yaw < 0 else (1, -1)

    def _nearness(self, side: int) -> float:
        return 1.0 if side == self._far_to_near()[1] else 0.86

    def _picture_side(self, side: str) -> int:
        """The wearer's left is at the picture's right, unless seen from behind."""
        return (1 if side == 'left' else -1) * (-1 if self.pose.back else 1)

    def _wears(self, part: Part | None, side: int) -> bool:
        return part is not None and (part.side == 'both' or self._picture_side(part.side) == side)

    def _around(self, angle: float) -> tuple[float, float]:
        """x and foreshortening of a point of the torso at an angle from its front."""
        angle = angle + self.pose.yaw
        return self.middle + self.chest * math.sin(angle), max(math.cos(angle), 0.35)

    # -- body ---------------------------------------------------------------------------------

    def _leg(self, side: int) -> None:
        canvas, colour = self.canvas, shade(self.coarse['bottom'], self._nearness(side))
        step = self.pose.step * side
        hip = (self.middle + side * self.chest * 0.45, 66.0)
        ankle = (hip[0] + side * 0.5 + step * 5.0, 114.0 - 2.0 * max(step, 0))
        knee = ((hip[0] + ankle[0]) / 2 + step * 1.2, 91.0)
        canvas.line([hip, knee, ankle], 9.0 * self.coarse['breadth'], colour)

        part = self.parts['leg']
        if self._wears(part, side):
            if part.style == 'seam':
                out = side * 3.4
                canvas.line(
                    [(x + out, y) for x, y in ((hip[0], 72.0), knee, ankle)], 2.2, part.colour
                )
            elif part.style == 'knee':
                canvas.rectangle(knee[0] - 4, knee[1] - 4, knee[0] + 4, knee[1] + 4, part.colour)
            else:
                x = knee[0] + (ankle[0] - knee[0]) * 0.55
                canvas.rectangle(x - 4.6, 101, x + 4.6, 105.5, part.colour)
        self._shoe(ankle, step)

    def _shoe(self, ankle: tuple[float, float], step: float) -> None:
        canvas, part = self.canvas, self.parts['shoes']
        toe = 2.2 * math.sin(self.pose.yaw) * (-1 if self.pose.back else 1) * 2
        x, y = ankle[0] + toe / 2, ankle[1] + 3.0
        upper = (30, 30, 32) if part.style == 'sole' else part.colour
        if part.style == 'boot':
            canvas.line([(ankle[0], ankle[1] - 6), ankle], 8.6, upper)
        canvas.ellipse(x, y, 6.0, 3.6, upper)
        sole = part.colour if part.style == 'sole' else shade(part.colour, 0.55)
        canvas.line([(x - 4.6, y + 2.8), (x + 4.6, y + 2.8)], 2.4, sole)

    def _torso(self) -> None:
        canvas, colour = self.canvas, self.coarse['top']
        x, chest = self.middle, self.chest
        waist = chest * (0.96 if self.hem_y > 70 else 0.84)
        canvas.polygon(
            [
                (x - chest * 0.4, 26.5),
                (x + chest * 0.4, 26.5),
                (x + chest * 0.95, 30),
                (x + chest * 0.97, 42),
                (x + waist, self.hem_y),
                (x - waist, self.hem_y),
                (x - chest * 0.97, 42),
                (x - chest * 0.95, 30),
            ],
            colour,
        )
        canvas.line(
            [(x - waist + 1, self.hem_y), (x + waist - 1, self.hem_y)], 2.0, shade(colour, 0.8)
        )

    def _head(self) -> None:
        canvas, pose = self.canvas, self.pose
        x = self.middle + 2.0 * math.sin(pose.yaw) * (-1 if pose.back else 1)
        canvas.rectangle(self.middle - 3, 21, self.middle + 3, 28, shade(self.coarse['skin'], 0.85))
        canvas.ellipse(x, 15.5, 6.6, 8.2, self.coarse['hair'])
        if not pose.back:
            face = x + 1.6 * math.sin(pose.yaw)
            canvas.ellipse(face, 17.2, 5.3, 6.4, self.coarse['skin'])
            for eye in (-2.1, 2.1):
                canvas.ellipse(face + eye + math.sin(pose.yaw), 16.4, 0.8, 0.8, (30, 26, 26))
        part = self.parts['headwear']
        if part is None:
            return
        if part.style == 'band':
            canvas.line([(x - 5.6, 12.2), (x + 5.6, 12.2)], 3.0, part.colour)
            return
        crown = [(x - 6.9, 12.6)]
        crown += [(x + 6.9 * math.cos(a), 12.6 - 6.6 * math.sin(a)) for a in _arc(math.pi, 0.0)]
        canvas.polygon(crown, part.colour)
        if part.style == 'beanie':
            canvas.line([(x - 6, 12.6), (x + 6, 12.6)], 3.2, shade(part.colour, 0.7))
            canvas.ellipse(x, 5.6, 2.6, 2.4, shade(part.colour, 1.6))
        elif not pose.back:
            reach = 4.0 * math.sin(pose.yaw)
            canvas.line([(x - 5 + reach, 13), (x + 5 + reach, 13)], 2.4, shade(part.colour, 0.75))

    def _arm(self, side: int) -> None:
        canvas = self.canvas
        long = self.coarse['sleeves'] == 'long'
        colour = shade(self.coarse['top'], 0.88 * self._nearness(side))
        swing = self.pose.swing * side
        shoulder = (self.middle + side * (self.chest - 0.6), 32.0)
        elbow = (shoulder[0] + side * 3.0 + swing * 1.5, 49.0)
        hand = (shoulder[0] + side * 2.6 + swing * 5.0, 66.5 - abs(swing) * 2)

        def along(t: float) -> tuple[float, float]:
            (ax, ay), (bx, by), t = (
                (shoulder, elbow, 2 * t) if t < 0.5 else (elbow, hand, 2 * t - 1)
            )
            return ax + (bx - ax) * t, ay + (by - ay) * t

        canvas.ellipse(*along(1.0), 3.2, 3.6, self.coarse['skin'])
        canvas.line([elbow, along(0.93)], 5.6, colour if long else self.coarse['skin'])
        canvas.line([shoulder, elbow], 7.2, colour)

        part = self.parts['sleeve']
        if self._wears(part, side):
            if part.style == 'patch':
                x, y = along(0.2)
                canvas.mark('square', x, y, 3.4, part.colour, colour)
            else:
                places = {'cuff': (0.86,), 'band': (0.3,), 'bands': (0.2, 0.42)}[part.style]
                for t in places:
                    start, end = along(t - 0.045), along(t + 0.045)
                    width = 7.4 if t < 0.5 else 6.2
                    canvas.polygon(
                        [
                            (start[0] - width / 2, start[1]),
                            (start[0] + width / 2, start[1]),
                            (end[0] + width / 2, end[1]),
                            (end[0] - width / 2, end[1]),
                        ],
                        part.colour,
                    )
        bag = self.parts['bag']
        if bag is not None and bag.style == 'handbag' and self._wears(bag, side):
            x, y = hand
            canvas.line([(x - 3, y + 8), (x, y + 1), (x + 3, y + 8)], 1.3, shade(bag.colour, 0.6))
            canvas.rectangle(x - 5.5, y + 7, x + 5.5, y + 17, bag.colour)
            canvas.rectangle(x - 5.5, y + 10, x + 5.5, y + 11.5, shade(bag.colour, 0.6))

    # -- parts on the torso -------------------------------------------------------------------

    def _badge(self) -> None:
        part = self.parts['badge']
        if part is not None:
            x, squeeze = self._around(self._picture_side(part.side) * 0.42)
            ground = self.coarse['top']
            self.canvas.mark(part.style, x, 38.0, 4.2, part.colour, ground, squeeze)

    def _print(self) -> None:
        part = self.parts['print']
        if part is None:
            return
        canvas = self.canvas
        x, squeeze = self._around(0.0)
        if part.style in MARKS:
            canvas.mark(part.style, x, 54.0, 6.0, part.colour, self.coarse['top'], squeeze)
        elif part.style in ('stripe', 'stripes'):
            half = self.chest * 0.88
            for y in (54.0,) if part.style == 'stripe' else (50.5, 57.0):
                canvas.rectangle(
                    self.middle - half, y - 1.6, self.middle + half, y + 1.6, part.colour
                )
        elif part.style == 'bars':
            for angle in (-0.4, 0.0, 0.4):
                bar, squeeze = self._around(angle)
                canvas.rectangle(bar - 1.3 * squeeze, 48, bar + 1.3 * squeeze, 61, part.colour)
        elif part.style == 'slash':
            half = 8 * squeeze * (-1 if self.pose.back else 1)
            canvas.line([(x - half, 61), (x + half, 48)], 3.0, part.colour)
        else:
            for row in range(3):
                for column in range(-1, 3):
                    if (row + column) % 2 == 0:
                        left, _ = self._around((column - 1) * 0.3)
                        right, _ = self._around(column * 0.3)
                        canvas.rectangle(left, 48 + row * 4, right, 52 + row * 4, part.colour)

    def _collar(self) -> None:
        part = self.parts['collar']
        if part is None:
            return
        canvas = self.canvas
        x, squeeze = self._around(0.0)
        neck = self.middle
        if part.style == 'scarf':
            canvas.line([(neck - 5.0, 26.5), (neck + 5.0, 26.5)], 4.6, part.colour)
            end, _ = self._around(0.25)
            canvas.line([(end, 27), (end + 1, 36)], 3.6, shade(part.colour, 0.8))
        elif self.pose.back:
            canvas.line([(neck - 4.5, 26.8), (neck + 4.5, 26.8)], 2.2, part.colour)
        elif part.style == 'vee':
            canvas.line([(neck - 4.5, 26.5), (x, 35), (neck + 4.5, 26.5)], 2.4, part.colour)
        elif part.style == 'tie':
            canvas.polygon(
                [
                    (x - 1.5, 27),
                    (x + 1.5, 27),
                    (x + 2.6 * squeeze, 43),
                    (x, 46.5),
                    (x - 2.6 * squeeze, 43),
                ],
                part.colour,
            )
        else:
            canvas.line([(x, 27), (x, self.hem_y - 1)], 1.8, part.colour)
            canvas.line([(neck - 4.0, 26.8), (neck + 4.0, 26.8)], 2.2, part.colour)

    def _belt(self) -> None:
        part = self.parts['belt']
        if part is None:
            return
        canvas, waist = self.canvas, self.chest * 0.84
        x, squeeze = self._around(0.0)
        strap: Colour = part.colour if part.style == 'belt' else shade(self.coarse['bottom'], 0.6)
        canvas.rectangle(self.middle - waist, 65.5, self.middle + waist, 69.0, strap)
        if part.style == 'buckle':
            canvas.rectangle(x - 3.4 * squeeze, 64.4, x + 3.4 * squeeze, 70.2, part.colour)
        elif part.style == 'pouch':
            for angle in (-0.75, 0.75):
                pouch, squeeze = self._around(angle)
                canvas.rectangle(pouch - 3.2 * squeeze, 65, pouch + 3.2 * squeeze, 73, part.colour)

    def _backpack_behind(self) -> None:
        part = self.parts['bag']
        if part is not None and part.style == 'backpack':
            x = self.middle - 5 * math.sin(self.pose.yaw)
            self.canvas.line([(x - 6, 34), (x + 6, 34)], 16, shade(part.colour, 0.8))
            self.canvas.rectangle(x - 13.5, 34, x + 13.5, 58, shade(part.colour, 0.8))

    def _bag_on_torso(self) -> None:
        part = self.parts['bag']
        if part is None:
            return
        canvas = self.canvas
        if part.style == 'backpack':
            if self.pose.back:
                x, squeeze = self._around(0.0)
                half = 8.5 * squeeze
                canvas.line([(x - half + 3, 33), (x + half - 3, 33)], 6, part.colour)
                canvas.rectangle(x - half, 33, x + half, 56, part.colour)
                canvas.rectangle(x - half * 0.7, 46, x + half * 0.7, 54, shade(part.colour, 0.7))
            else:
                for angle in (-0.55, 0.55):
                    strap, squeeze = self._around(angle)
                    canvas.line([(strap, 28.5), (strap, 48)], 2.8 * squeeze, part.colour)
        elif part.style == 'satchel':
            side = self._picture_side(part.side)
            start, _ = self._around(-side * 0.6)
            end, _ = self._around(side * 0.8)
            canvas.line([(start, 28.5), (end, 64)], 2.2, part.colour)
            canvas.rectangle(end - 5.0, 62, end + 5.0, 73, part.colour)
            canvas.rectangle(end - 5.0, 62, end + 5.0, 66, shade(part.colour, 0.7))


def _arc(start: float, end: float, steps: int = 12) -> list[float]:
    return [start + (end - start) * i / steps for i in range(steps + 1)]
