"""Values that a training wrote to its JSON logs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from .curves import Series


def read_scalars(path: str | os.PathLike) -> list[dict[str, float]]:
    """Entries of a ``scalars.json`` file, or of all runs in a work dir, in the order of writing.

    A run that was resumed goes over some steps again; the later entry counts.

    Raises:
        FileNotFoundError: If there is no log.
        ValueError: If a line is no JSON object; a torn last line is left out.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob('*/vis_data/scalars.json'))
    if not files:
        raise FileNotFoundError(f'{path} holds no */vis_data/scalars.json: is it a work dir?')
    return [entry for file in files for entry in _entries(file)]


def series_of(entries: Sequence[dict[str, float]], names: Sequence[str]) -> dict[str, Series]:
    """Steps and values of some names, leaving out those that were never logged."""
    # MMEngine counts iterations in training and, if it trains by epochs, epochs in validation.
    by_epoch = any('epoch' in entry for entry in entries)
    series = {}
    for name in names:
        found = [entry for entry in entries if name in entry]
        if found:
            points = {entry['step']: entry[name] for entry in found}
            steps = sorted(points)
            axis = 'epoch' if by_epoch and 'iter' not in found[0] else 'iteration'
            series[name] = Series(axis, steps, [points[step] for step in steps])
    return series


def _entries(file: Path) -> list[dict[str, float]]:
    lines = file.read_text().splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f'{file}, line {number} is no JSON: {error}') from None
    return entries
