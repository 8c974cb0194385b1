"""Identities that share their coarse appearance and differ in small parts.

An identity is a coarse appearance (colours and silhouette, common to its group) plus one part for
every slot. Members of a group are made from one template by exchanging the parts of a few slots,
so that no single slot and no colour histogram tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .canvas import Colour

PALETTE: dict[str, Colour] = {
    'white': (245, 245, 240),
    'black': (22, 22, 26),
    'red': (214, 36, 40),
    'yellow': (246, 208, 30),
    'green': (34, 152, 62),
    'blue': (36, 84, 208),
    'orange': (244, 128, 22),
    'pink': (238, 110, 178),
    'cyan': (50, 196, 214),
}

_MIN_CONTRAST = 125.0  # Euclidean distance in RGB between a part and what it lies on
_MAX_ATTEMPTS = 1000


@dataclass(frozen=True)
class Slot:
    """A place where a part may be.

    Attributes:
        styles: Names of the parts that fit.
        ground: Coarse attribute that the part lies on and has to contrast with.
        sides: Placements to choose from.
        absent: Probability that the place is empty.
    """

    styles: tuple[str, ...]
    ground: str
    sides: tuple[str, ...] = ('',)
    absent: float = 0.0


@dataclass(frozen=True)
class Part:
    """What an identity carries in a slot: a style in a colour at a side."""

    style: str
    colour: Colour
    side: str = ''


@dataclass(frozen=True)
class Identity:
    """Coarse appearance (attribute to colour or name) and parts (slot to part or None)."""

    coarse: Mapping[str, Any]
    parts: Mapping[str, Part | None]

    def part_distance(self, other: Identity) -> int:
        """Number of slots in which two identities differ."""
        return sum(self.parts[slot] != other.parts[slot] for slot in self.parts)


def invent_identities(
    rng: np.random.Generator,
    count: int,
    slots: Mapping[str, Slot],
    coarse_choices: Mapping[str, tuple],
    group_size: int = 6,
    exchanged: int = 4,
    min_distance: int = 3,
) -> list[Identity]:
    """Invent identities in groups of equal coarse appearance.

    Args:
        rng: Source of randomness.
        count: Number of identities.
        slots: Places for parts.
        coarse_choices: Coarse attributes and their possible values.
        group_size: Identities that share a coarse appearance.
        exchanged: Slots in which a member is redrawn from the template of its group.
        min_distance: Any two identities, of whichever group, differ in this many slots at least.

    Returns:
        ``count`` identities; members of a group are neighbours in the list.

    Raises:
        ValueError: If the slots don't offer that many sufficiently different identities.
    """
    identities: list[Identity] = []
    while len(identities) < count:
        coarse = {
            name: values[rng.integers(len(values))] for name, values in coarse_choices.items()
        }
        template = {name: _draw_part(rng, slot, coarse) for name, slot in slots.items()}
        for _ in range(min(group_size, count - len(identities))):
            for _ in range(_MAX_ATTEMPTS):
                parts = dict(template)
                for name in rng.permutation(list(slots))[:exchanged]:
                    parts[str(name)] = _draw_part(rng, slots[str(name)], coarse)
                candidate = Identity(coarse, parts)
                if all(candidate.part_distance(known) >= min_distance for known in identities):
                    identities.append(candidate)
                    break
            else:
                raise ValueError(
                    f'could not invent {count} identities that differ in {min_distance} parts: '
                    f'got stuck at {len(identities)}; ask for fewer'
                )
    return identities


def _draw_part(rng: np.random.Generator, slot: Slot, coarse: Mapping) -> Part | None:
    if rng.random() < slot.absent:
        return None
    ground = np.array(coarse[slot.ground], dtype=float)
    colours = [
        colour
        for colour in PALETTE.values()
        if np.linalg.norm(np.array(colour) - ground) >= _MIN_CONTRAST
    ]
    return Part(
        style=slot.styles[rng.integers(len(slot.styles))],
        colour=colours[rng.integers(len(colours))],
        side=slot.sides[rng.integers(len(slot.sides))],
    )
