"""Checkpoint converters: names of other code bases to vitdown's (mmpretrain's), and back."""

from .convert import (
    CONVERTERS,
    EXPORTERS,
    OPTIONAL_WEIGHTS,
    convert_state_dict,
    export_state_dict,
)

__all__ = [
    'CONVERTERS',
    'EXPORTERS',
    'OPTIONAL_WEIGHTS',
    'convert_state_dict',
    'export_state_dict',
]
