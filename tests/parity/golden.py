"""Reference vectors: discovery, loading and comparison.

Reference files are ``.npz`` archives below a folder that holds one sub-folder a method. The folder
is ``tests/data/golden``, or the one that the environment variable ``VITDOWN_GOLDEN`` names. Every
archive describes itself in its entry ``meta`` (JSON): what kind of file it is, the settings, which
entries are inputs and outputs, and how closely the outputs must be met.

A parity test takes a file, computes every output, hands each to :meth:`GoldenFile.compare` and ends
with :meth:`GoldenFile.assert_all_compared`, so that an output nobody computes is a failure too.
"""

from __future__ import annotations

import json
import os
import zlib
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

DEFAULT_ROOT = Path(__file__).resolve().parents[1] / 'data' / 'golden'
TOLERANCE_KEYS = frozenset(
    {'rtol', 'atol', 'atol_max', 'min_fraction', 'outlier_fraction', 'outlier_atol'}
)


def golden_files(method: str) -> list[Path]:
    """Reference files of a method, sorted by path.

    Raises:
        FileNotFoundError: If there is none: a parity test without files would test nothing.
    """
    root = Path(os.environ.get('VITDOWN_GOLDEN') or DEFAULT_ROOT)
    files = sorted((root / method).rglob('*.npz'))
    if not files:
        raise FileNotFoundError(
            f'no reference files (*.npz) below {root / method}; set VITDOWN_GOLDEN to the folder '
            f'that holds one sub-folder a method, or unset it to use {DEFAULT_ROOT}'
        )
    return files


class GoldenFile:
    """One reference file.

    Attributes:
        path: Where it lies.
        meta: The file's description of itself.
        kind: What the file checks; parity tests dispatch on it.
        config: Settings of the whole file (empty if it has none).
        cases: Case name -> settings (empty if the file has one unnamed case).
        keys: Names of all arrays.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with np.load(self.path) as archive:
                self._arrays = {key: archive[key] for key in archive.files}
        except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
            raise ValueError(f'{self.path} cannot be read, copy it anew: {error}') from error
        if 'meta' not in self._arrays:
            raise ValueError(f'{self.path} has no entry "meta": not a reference file')
        self.meta: dict[str, Any] = json.loads(str(self._arrays.pop('meta')))
        self.kind: str = self.meta['kind']
        self.config: dict[str, Any] = self.meta.get('config', {})
        self.cases: dict[str, dict[str, Any]] = self.meta.get('cases', {})
        self.keys: tuple[str, ...] = tuple(self._arrays)
        self._compared: set[str] = set()

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self._arrays:
            raise KeyError(f'{self.path.name} has no entry {key!r}; it has {sorted(self._arrays)}')
        return self._arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def tensor(self, key: str) -> torch.Tensor:
        """A fresh tensor with the contents of an entry."""
        return torch.from_numpy(self[key].copy())

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """Entries whose name starts with ``prefix``, keyed by the rest of the name."""
        return {
            key.removeprefix(prefix): self.tensor(key)
            for key in self.keys
            if key.startswith(prefix)
        }

    def output_keys(self) -> list[str]:
        """Names of the stored outputs.

        Raises:
            ValueError: If a pattern under ``outputs`` fits no entry of the file.
        """
        found: dict[str, None] = {}
        for pattern in self.meta['outputs']:
            expanded = self._expand(pattern)
            matches = [k for k in self.keys if any(fnmatchcase(k, p) for p in expanded)]
            if not matches:
                raise ValueError(f'{self.path.name}: no entry fits the output pattern {pattern!r}')
            found.update(dict.fromkeys(matches))
        return list(found)

    def tolerance(self, key: str) -> dict[str, Any]:
        """Tolerance of one entry: the file's values, replaced by those of a fitting pattern."""
        table = dict(self.meta['tolerance'])
        table.pop('note', None)
        per_key = table.pop('per_key', {})
        fitting = [
            {k: v for k, v in values.items() if k != 'note'}
            for pattern, values in per_key.items()
            if any(fnmatchcase(key, p) for p in self._expand(pattern))
        ]
        if any(values != fitting[0] for values in fitting[1:]):
            raise ValueError(f'{self.path.name}: patterns disagree on the tolerance of {key!r}')
        if fitting:
            table.update(fitting[0])
        elif self[key].dtype.kind in 'iub':
            table = {'rtol': 0.0, 'atol': 0.0}
        return table

    def compare(self, key: str, actual: Any) -> None:
        """Compare a computed value with a stored output and note that it was compared.

        Raises:
            KeyError: If the file has no such entry.
            AssertionError: If the value is not within the file's tolerance.
        """
        expected = self[key]
        self._compared.add(key)
        message = mismatch(actual, expected, **self.tolerance(key))
        if message:
            raise AssertionError(f'{self.path.name}, {key}: {message}')

    def assert_all_compared(self) -> None:
        """Fail if a stored output was never compared."""
        missing = [key for key in self.output_keys() if key not in self._compared]
        assert not missing, f'{self.path.name}: outputs that were never compared: {missing}'

    def _expand(self, pattern: str) -> list[str]:
        """Replace ``{case}`` and ``{setting}`` in a pattern by the names they stand for."""
        if '{case}' not in pattern and '{setting}' not in pattern:
            return [pattern]
        expanded = []
        for case, settings in self.cases.items():
            filled = pattern.replace('{case}', escape(case))
            if '{setting}' in filled:
                names = settings.get('settings', ())
                expanded += [filled.replace('{setting}', escape(str(name))) for name in names]
            else:
                expanded.append(filled)
        return expanded


def mismatch(
    actual: Any,
    expected: np.ndarray,
    rtol: float | list[float] = 0.0,
    atol: float | list[float] = 0.0,
    atol_max: float = 0.0,
    min_fraction: float = 1.0,
    outlier_fraction: float = 0.0,
    outlier_atol: float | None = None,
) -> str | None:
    """Say how ``actual`` misses ``expected``; None if it is within tolerance.

    An element passes if ``|actual - expected| <= atol + rtol * |expected|``.

    Args:
        actual: Tensor, array, number or nested list of the same shape.
        expected: The stored array.
        rtol: Relative part; a list holds one value for each element along the first axis.
        atol: Absolute part; a list likewise.
        atol_max: Raises the absolute part to at least ``atol_max * max|expected|``.
        min_fraction: Share of the elements that must pass.
        outlier_fraction: Share of the elements that may miss the bound.
        outlier_atol: No element may be further off than this (nor than the bound, if larger).
    """
    if isinstance(actual, torch.Tensor):
        actual = actual.detach().cpu()
        actual = actual.float() if actual.dtype == torch.bfloat16 else actual
        actual = actual.numpy()
    actual = np.asarray(actual)
    expected = np.asarray(expected)
    if actual.shape != expected.shape:
        return f'shape {actual.shape} instead of {expected.shape}'
    if expected.size == 0:
        return None
    if expected.dtype.kind in 'iub' and actual.dtype.kind in 'iub' and rtol == 0 and atol == 0:
        # Not by way of float64, which cannot tell large integers apart.
        error = np.where(actual == expected, 0.0, np.inf)
        if outlier_atol is not None:
            error = np.where(error > 0, np.abs(actual.astype(float) - expected.astype(float)), 0.0)
        reference = expected.astype(np.float64)
    else:
        actual, reference = actual.astype(np.float64), expected.astype(np.float64)
        with np.errstate(invalid='ignore'):
            error = np.abs(actual - reference)
        same = (actual == reference) | (np.isnan(actual) & np.isnan(reference))
        error = np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))

    magnitude = np.abs(reference)
    finite = magnitude[np.isfinite(magnitude)]
    absolute = np.maximum(_along_first_axis(atol, reference), atol_max * finite.max(initial=0.0))
    with np.errstate(invalid='ignore'):
        bound = absolute + _along_first_axis(rtol, reference) * magnitude
    bound = np.where(np.isfinite(bound), bound, 0.0)
    missed = error > bound
    allowed = max(1.0 - min_fraction, outlier_fraction) * missed.size
    too_many = np.count_nonzero(missed) > allowed * (1 + 1e-12) + 1e-9
    limit = bound if outlier_atol is None else np.maximum(bound, outlier_atol)
    too_far = outlier_atol is not None and bool((error > limit).any())
    if not (too_many or too_far):
        return None
    worst = np.unravel_index(np.argmax(error - bound), error.shape)
    text = (
        f'{np.count_nonzero(missed)} of {missed.size} elements miss the bound '
        f'({allowed:.6g} may); worst at {tuple(int(i) for i in worst)}: {actual[worst]!r} instead '
        f'of {expected[worst]!r}, bound {bound[worst]:.3g}'
    )
    if too_far:
        text += (
            f'; {np.count_nonzero(error > limit)} miss even the outlier bound {outlier_atol:.3g}'
        )
    return text


def _along_first_axis(value: float | list[float], like: np.ndarray) -> np.ndarray:
    """A tolerance that broadcasts against an array; a list runs along the first axis."""
    values = np.asarray(value, dtype=np.float64)
    if values.ndim == 0:
        return values
    if like.ndim == 0 or values.shape != like.shape[:1]:
        raise ValueError(f'{values.size} tolerances for an array of shape {like.shape}')
    return values.reshape(-1, *([1] * (like.ndim - 1)))
