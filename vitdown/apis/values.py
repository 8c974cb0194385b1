"""Text as values of metadata: integers, numbers, times, words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

_TRUE, _FALSE = ('1', 'true', 'yes'), ('0', 'false', 'no')
# With leading zeros, digits are a label, such as 0017.
_INTEGER = re.compile(r'-?(0|[1-9]\d*)', re.ASCII)
_NUMBER = re.compile(
    r'-?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[+-]?\d+)?|nan|-?inf', re.ASCII | re.IGNORECASE
)
_TIME = re.compile(
    r'(\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?)'
    r'(?:Z|(?P<sign>[+-])(?P<hours>\d\d):?(?P<minutes>\d\d))?',
    re.ASCII,
)


def typed_column(name: str, values: Sequence[str]) -> np.ndarray:
    """A column of text as integers, numbers or times if all of it is written as such.

    Args:
        name (str): The column, for errors.
        values (Sequence[str]): Its text, a value for each row.

    Returns:
        np.ndarray: int64, float64, datetime64[us] or strings.

    Raises:
        ValueError: If there are times, but a value is none.
    """
    texts = [value.strip() for value in values]
    if all(map(_INTEGER.fullmatch, texts)):
        numbers = list(map(int, texts))
        if all(abs(number) < 2**63 for number in numbers):
            return np.array(numbers, np.int64)
    # Integers that are too long for a number would be rounded.
    elif all(map(_NUMBER.fullmatch, texts)):
        return np.array(texts, np.float64)
    elif any(map(_TIME.fullmatch, texts)):
        return np.array([parse_time(text, name) for text in texts], 'M8[us]')
    return np.array(values, str)


def parse_value(text: str, name: str, dtype: np.dtype) -> str | bool | int | float | np.datetime64:
    """Text as a value of a column's type.

    Raises:
        ValueError: If it is none.
    """
    if dtype.kind == 'U':
        return text
    if dtype.kind == 'M':
        return parse_time(text, name)
    if dtype.kind == 'b' and text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    try:
        if dtype.kind in 'iu':
            # NumPy can't compare or keep what is out of the type's range.
            limits = np.iinfo(dtype)
            if limits.min <= (integer := int(text)) <= limits.max:
                return integer
        if dtype.kind == 'f' and not math.isnan(number := float(text)):
            return number
    except ValueError:
        pass
    reason = 'is none'
    if dtype.kind in 'iu' and text.removeprefix('-').isdecimal():
        reason = 'is out of its range'
    raise ValueError(f'column {name!r} holds {dtype}, {text!r} {reason}')


def parse_time(text: str, name: str, last: bool = False) -> np.datetime64:
    """A time in ISO 8601; one with ``Z`` or an offset is brought to UTC.

    Args:
        text (str): Such as ``2024-05-01``, ``2024-05-01T12:30`` or ``2024-05-01T12:30:00+02:00``.
        name (str): The column, for errors.
        last (bool): Give the last microsecond of the day, minute or second that the text names,
            not the first.

    Raises:
        ValueError: If it is none.
    """
    reason = 'write it as 2024-05-01 or 2024-05-01T12:30'
    if found := _TIME.fullmatch(text):
        try:
            time = np.datetime64(found[1], 'us')
        except ValueError as error:
            reason = str(error).split(' in datetime')[0].lower()
        else:
            if last:
                following = (np.datetime64(found[1]) + 1).astype('M8[us]')
                time = max(time, following - np.timedelta64(1, 'us'))
            ahead = int(found['hours'] or 0) * 60 + int(found['minutes'] or 0)
            return time - np.timedelta64(-ahead if found['sign'] == '-' else ahead, 'm')
    raise ValueError(f'column {name!r} holds times, {text!r} is none: {reason}')
