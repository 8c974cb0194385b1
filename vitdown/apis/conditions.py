"""Conditions on metadata as text, for command lines and forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitdown.evaluation.index import Between

from .values import parse_time, parse_value


def split_conditions(texts: Sequence[str]) -> dict[str, str]:
    """``['camera=1,2', ...]`` as ``{'camera': '1,2', ...}``.

    Raises:
        ValueError: If a text has no ``=``, or a column has two of them.
    """
    conditions: dict[str, str] = {}
    for text in texts:
        name, sign, values = text.partition('=')
        if not sign or not name:
            raise ValueError(f'a condition is COLUMN=VALUES, {text!r} is none')
        if name in conditions:
            raise ValueError(
                f'column {name!r} has two conditions, {conditions[name]!r} and {values!r}: give '
                f'one, with commas between values or as a range, {name}=LOW..HIGH'
            )
        conditions[name] = values
    return conditions


def parse_conditions(
    texts: Mapping[str, str], types: Mapping[str, np.dtype]
) -> dict[str, list | Between]:
    """Conditions for ``search(where=...)``.

    Args:
        texts (dict[str, str]): For each column: values with commas between them (``'1,2'``), or a
            range one of whose ends may be left out (``'3..7'``, ``'2024-05-01..'``). A day at its
            upper end belongs to it whole, as does a minute.
        types (dict[str, np.dtype]): Types of the gallery's columns.

    Raises:
        ValueError: If a column is unknown, a value is missing or none of its type, or a range ends
            before it begins.
    """
    conditions: dict[str, list | Between] = {}
    for name, text in texts.items():
        if name not in types:
            raise ValueError(f'the gallery has no column {name!r}, only {sorted(types)}')
        if '..' in text and types[name].kind in 'iufM':
            conditions[name] = _parse_range(name, text, types[name])
        else:
            parts = [part.strip() for part in text.split(',')]
            if '' in parts:
                raise ValueError(f'column {name!r}: a value is missing in {text!r}')
            conditions[name] = [parse_value(part, name, types[name]) for part in parts]
    return conditions


def _parse_range(name: str, text: str, dtype: np.dtype) -> Between:
    ends = [part.strip() for part in text.split('..', 1)]
    if not any(ends):
        raise ValueError(f'column {name!r}: the range {text!r} has no ends; leave out one at most')
    values: list[Any] = [parse_value(end, name, dtype) if end else None for end in ends]
    low, high = values
    if high is not None and dtype.kind == 'M':
        high = parse_time(ends[1], name, last=True)
    if low is not None and high is not None and low > high:
        raise ValueError(
            f'column {name!r}: the range {text!r} ends before it begins; the lower end comes first'
        )
    return Between(low, high)
