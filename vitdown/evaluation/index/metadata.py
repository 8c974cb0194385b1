"""Columns of values beside the vectors, and conditions on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Between:
    """A condition: values from ``low`` to ``high``, both included; None leaves an end open."""

    low: Any = None
    high: Any = None


Where = Mapping[str, Any] | Callable[[Columns], np.ndarray] | np.ndarray


def as_columns(metadata: Mapping[str, Any] | None, length: int) -> Columns:
    """Arrays of booleans, numbers, strings or datetime64, each of shape (length,).

    Raises:
        TypeError: If a column holds other objects.
        ValueError: If a column has another length.
    """
    columns = {}
    for name, values in (metadata or {}).items():
        column = np.asarray(values)
        if column.dtype == object and all(isinstance(value, str) for value in column.flat):
            column = column.astype(str)
        if column.dtype.kind not in 'biufUM':
            raise TypeError(
                f'metadata column {name!r} has the type {column.dtype}: use booleans, numbers, '
                'strings or datetime64'
            )
        if column.shape != (length,):
            raise ValueError(
                f'metadata column {name!r} must hold one value for each of the {length} vectors; '
                f'its shape is {column.shape}'
            )
        columns[name] = column.copy()
    return columns


def append_columns(columns: Columns, more: Columns) -> Columns:
    """Both sets of rows, one after the other.

    Raises:
        TypeError: If a column changes its type.
        ValueError: If a column is missing or new.
    """
    if missing := sorted(columns.keys() - more.keys()):
        raise ValueError(f'metadata columns {missing} of the gallery are missing for the new rows')
    if unknown := sorted(more.keys() - columns.keys()):
        raise ValueError(
            f'metadata columns {unknown} are unknown to the gallery, which has {sorted(columns)}'
        )
    for name, column in columns.items():
        if column.dtype.kind != more[name].dtype.kind:
            raise TypeError(
                f'metadata column {name!r} holds {column.dtype}, the new rows {more[name].dtype}'
            )
    return {name: np.concatenate([columns[name], more[name]]) for name in columns}


def matching(columns: Columns, where: Where, length: int) -> np.ndarray:
    """Which rows a condition allows: a boolean array of shape (length,).

    Raises:
        KeyError: If the condition names an unknown column.
        TypeError: If it compares text with numbers.
        ValueError: If it is or returns something else than a boolean per row.
    """
    if not isinstance(where, Mapping):
        mask = np.asarray(where(columns) if callable(where) else where)
        if mask.dtype != bool or mask.shape != (length,):
            raise ValueError(
                f'where must give one boolean for each of the {length} vectors, not '
                f'{mask.dtype} of shape {mask.shape}'
            )
        return mask
    mask = np.ones(length, dtype=bool)
    for name, condition in where.items():
        if name not in columns:
            raise KeyError(f'no metadata column {name!r}, only {sorted(columns)}')
        column = columns[name]
        if isinstance(condition, Between):
            if condition.low is not None:
                mask &= column >= comparable(condition.low, name, column.dtype)
            if condition.high is not None:
                mask &= column <= comparable(condition.high, name, column.dtype)
        else:
            values = as_values(condition)
            mask &= np.isin(column, comparable(values, name, column.dtype)) if values else False
    return mask


def as_values(condition: Any) -> list:
    """The values that fulfil a condition that is a value or a collection of values."""
    several = isinstance(condition, (list, tuple, set, frozenset, range, np.ndarray))
    return list(condition) if several else [condition]


def comparable(values: Any, name: str, dtype: np.dtype) -> np.ndarray:
    """Values of a condition as an array that compares with a column of a type.

    Raises:
        TypeError: If text would be compared with numbers.
        ValueError: If a value is no time, beside times.
    """
    is_time, is_text = dtype.kind == 'M', dtype.kind == 'U'
    try:
        # Text such as '2024-05-01' stands for a date beside dates.
        values = np.asarray(values, dtype='datetime64' if is_time else None)
    except ValueError:
        raise ValueError(
            f'metadata column {name!r} holds times, the condition {values!r} is none; write it as '
            '2024-05-01 or 2024-05-01T12:30'
        ) from None
    if not is_time and (values.dtype.kind == 'U') != is_text:
        raise TypeError(f'metadata column {name!r} holds {dtype}, the condition {values.dtype}')
    return values
