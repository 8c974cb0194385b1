"""Conditions on metadata as text, for command lines and forms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitdown.evaluation.index import Between

_TRUE, _FALSE = ('1', 'true', 'yes'), ('0', 'false', 'no')


def parse_conditions(
    texts: Mapping[str, str], types: Mapping[str, np.dtype]
) -> dict[str, list | Between]:
    """Conditions for ``search(where=...)``.

    Args:
        texts (dict[str, str]): For each column: values with commas between them (``'1,2'``), or a
            range whose ends may be left out (``'3..7'``, ``'2024-05-01..'``).
        types (dict[str, np.dtype]): Types of the gallery's columns.

    Raises:
        ValueError: If a column is unknown or a value is none of its type.
    """
    conditions: dict[str, list | Between] = {}
    for name, text in texts.items():
        if name not in types:
            raise ValueError(f'the gallery has no column {name!r}, only {sorted(types)}')
        if '..' in text and types[name].kind in 'iufM':
            ends = [part.strip() for part in text.split('..', 1)]
            low, high = (parse_value(end, name, types[name]) if end else None for end in ends)
            conditions[name] = Between(low, high)
        else:
            parts = [part.strip() for part in text.split(',')]
            conditions[name] = [parse_value(part, name, types[name]) for part in parts if part]
    return conditions


def parse_value(text: str, name: str, dtype: np.dtype) -> str | bool | int | float | np.datetime64:
    """Text as a value of a column's type.

    Raises:
        ValueError: If it is none.
    """
    if dtype.kind == 'U':
        return text
    if dtype.kind == 'b' and text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    try:
        if dtype.kind in 'iu':
            return int(text)
        if dtype.kind == 'f':
            return float(text)
        if dtype.kind == 'M':
            return np.datetime64(text)
    except ValueError:
        pass
    raise ValueError(f'column {name!r} holds {dtype}, {text!r} is none')
