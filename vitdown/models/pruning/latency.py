import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from vitdown.files import write_atomically

#: Axes of the table, in the order of a point.
AXES = ('emb', 'heads', 'qk', 'v', 'mlp')


class LatencyTable:
    """Seconds that one block takes on one device, as a function of its sizes.

    Measured at the points of a grid (:func:`vitdown.models.pruning.measure_latency`), multilinear
    between them. A block without embedding takes no time.

    Args:
        axes (Mapping[str, Sequence[float]]): For each of ``'emb'``, ``'heads'``, ``'qk'``, ``'v'``
            and ``'mlp'`` the ascending sizes that were measured.
        values (array): Seconds at each point of the grid, shape as the axes are long.
        info (Mapping, optional): Where and how it was measured: ``device``, ``dtype``,
            ``batch_size``, ``num_tokens`` ...
        zero_plane (bool): Whether the table is extended by zeros at ``emb=0``. Defaults to True.

    Raises:
        ValueError: If axes and values do not fit, or values are not positive and finite.
    """

    def __init__(
        self,
        axes: Mapping[str, Sequence[float] | np.ndarray],
        values: np.ndarray,
        info: Mapping | None = None,
        zero_plane: bool = True,
    ) -> None:
        missing = [name for name in AXES if name not in axes]
        if missing:
            raise ValueError(f'A latency table needs the axes {AXES}; {missing} are missing')
        self.axes = {name: np.asarray(axes[name], dtype=np.float64) for name in AXES}
        self.values = np.asarray(values, dtype=np.float64)
        self.info = dict(info or {})
        self.zero_plane = zero_plane
        shape = tuple(len(axis) for axis in self.axes.values())
        if self.values.shape != shape:
            raise ValueError(f'Latency values have the shape {self.values.shape}, axes {shape}')
        for name, axis in self.axes.items():
            if (np.diff(axis) <= 0).any():
                raise ValueError(f'Axis {name} of the latency table is not ascending: {axis}')
        if not np.isfinite(self.values).all() or (self.values <= 0).any():
            raise ValueError('Latencies must be positive and finite; measure the table anew')
        points, grid = list(self.axes.values()), self.values
        if zero_plane and points[0][0] > 0:
            points[0] = np.concatenate(([0.0], points[0]))
            grid = np.concatenate((np.zeros_like(grid[:1]), grid))
        self._interpolate = RegularGridInterpolator(points, grid, bounds_error=False)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Seconds of blocks of given sizes.

        Args:
            points (array): ``(n, 5)``: emb, heads, qk, v, mlp.

        Returns:
            array: ``(n,)`` float64.

        Raises:
            ValueError: If a size lies outside the table.
        """
        points = np.asarray(points, dtype=np.float64)
        seconds = self._interpolate(points)
        if np.isnan(seconds).any():
            point = points[np.isnan(seconds)][0].astype(int).tolist()
            ranges = ', '.join(f'{name} {a[0]:g}-{a[-1]:g}' for name, a in self.axes.items())
            raise ValueError(
                f'A block of sizes {dict(zip(AXES, point))} lies outside the latency table '
                f'({ranges}); measure one for this model with tools/pruning/measure_latency.py'
            )
        return seconds

    def negative_slopes(self) -> float:
        """Share of the grid's edges along which a larger block is faster: measuring noise."""
        edges = [np.diff(self.values, axis=axis).ravel() for axis in range(len(AXES))]
        edges = np.concatenate(edges)
        return float((edges < 0).mean()) if len(edges) else 0.0

    def monotone(self) -> 'LatencyTable':
        """A table in which no larger block is faster: half-way between the monotone bounds."""
        above, below = self.values, self.values
        for axis in range(len(AXES)):
            above = np.maximum.accumulate(above, axis=axis)
            below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis=axis), axis)
        return LatencyTable(self.axes, (above + below) / 2, self.info, self.zero_plane)

    def fingerprint(self) -> str:
        """What tells this table from others: a hash of its axes and values."""
        parts = [*self.axes.values(), self.values]
        return hashlib.sha256(b''.join(part.tobytes() for part in parts)).hexdigest()[:12]

    def save(self, path: str | Path) -> None:
        """Write a JSON file."""
        content = dict(
            info=self.info,
            axes={name: axis.tolist() for name, axis in self.axes.items()},
            values=self.values.tolist(),
            zero_plane=self.zero_plane,
        )
        write_atomically(json.dumps(content).encode(), path)

    @classmethod
    def load(cls, path: str | Path) -> 'LatencyTable':
        """Read a file of :meth:`save`.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is no latency table.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f'Latency table {path} does not exist; measure it with '
                f'tools/pruning/measure_latency.py CONFIG --out {path}'
            )
        try:
            content = json.loads(path.read_text())
            return cls(
                content['axes'],
                np.array(content['values']),
                content['info'],
                content.get('zero_plane', True),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{path} is not a latency table: {error}') from None
