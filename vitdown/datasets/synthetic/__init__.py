"""Procedural pictures of persons and vehicles for the embedded re-ID set."""

from .generate import SyntheticSettings, generate_synthetic_reid
from .identity import Identity, Part, Slot, invent_identities
from .scene import KINDS, Camera, invent_cameras, render_distractor, render_view

__all__ = [
    'KINDS',
    'Camera',
    'Identity',
    'Part',
    'Slot',
    'SyntheticSettings',
    'generate_synthetic_reid',
    'invent_cameras',
    'invent_identities',
    'render_distractor',
    'render_view',
]
