"""Curves of evaluation and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitdown.evaluation.functional import RocCurve

from .style import plot


@dataclass
class Series:
    """A value that was logged again and again.

    Attributes:
        axis (str): What the steps are, ``'iteration'`` or ``'epoch'``.
        steps (Sequence[float]): When.
        values (Sequence[float]): What.
    """

    axis: str
    steps: Sequence[float]
    values: Sequence[float]


def draw_cmc(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Share of queries with a right match among the first k.

    Args:
        curves (dict[str, Sequence[float]]): For each name, the values at k = 1, 2 ..., from 0 to 1.
    """
    with plot() as (figure, (axes,)):
        for name, values in curves.items():
            ranks = range(1, len(values) + 1)
            axes.plot(ranks, 100 * np.asarray(values), label=name, marker='.', markersize=3)
        axes.set(xlabel='rank k', ylabel='CMC@k (%)')
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes, curves)
    return figure


def draw_roc(curves: Mapping[str, RocCurve], least_fpr: float = 1e-4) -> Figure:
    """True against false positive rate of all pairs, on a logarithmic axis.

    Args:
        curves (dict[str, RocCurve]): By name.
        least_fpr (float): Where the axis begins.
    """
    with plot() as (figure, (axes,)):
        for name, curve in curves.items():
            axes.plot(
                100 * curve.fpr, 100 * curve.tpr, label=name, drawstyle='steps-post', clip_on=True
            )
        rates = np.geomspace(100 * least_fpr, 100, 50)
        axes.plot(rates, rates, color='#999999', linewidth=0.8, linestyle=':')
        axes.set(xlabel='false positive rate (%)', ylabel='true positive rate (%)')
        axes.set(xscale='log', xlim=(100 * least_fpr, 100), ylim=(0, 101))
        _legend(axes, curves)
    return figure


def draw_training(runs: Mapping[str, Mapping[str, Series]]) -> Figure:
    """One panel for each logged value, one line for each run.

    Args:
        runs (dict[str, dict[str, Series]]): For each run, what it logged by name.

    Raises:
        ValueError: If there is no value to draw.
    """
    names = list(dict.fromkeys(name for series in runs.values() for name in series))
    if not names:
        raise ValueError('there is nothing to draw: no run logged any of the values')
    with plot(len(names)) as (figure, panels):
        for panel, name in zip(panels, names):
            for number, (run, series) in enumerate(runs.items()):
                if name in series:
                    line = series[name]
                    # A single point is no line.
                    marker = '.' if len(line.steps) < 30 else None
                    panel.plot(
                        line.steps, line.values, label=run, color=f'C{number}', marker=marker
                    )
                    panel.set(xlabel=line.axis, title=name)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(panels[-1], runs)
    return figure


def _legend(axes: Axes, curves: Mapping) -> None:
    if len(curves) > 1:
        axes.legend()
