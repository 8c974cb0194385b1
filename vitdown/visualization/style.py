"""One look for all plots: sizes that fit a paper's column, colours that everyone can tell apart."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vitdown.files import write_atomically

#: Okabe and Ito's colours, https://jfly.uni-koeln.de/color
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#F0E442')
#: Width and height of a plot, inches: a column of a two-column paper.
COLUMN = (3.4, 2.5)
FORMATS = ('.pdf', '.png', '.svg')

_STYLE = {
    'axes.axisbelow': True,
    'axes.grid': True,
    'axes.labelsize': 8,
    'axes.prop_cycle': matplotlib.cycler(color=COLOURS),
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlesize': 8,
    'font.size': 8,
    'grid.color': '#dddddd',
    'grid.linewidth': 0.5,
    'legend.fontsize': 7,
    'legend.frameon': False,
    'lines.linewidth': 1.3,
    # Text of files stays text, which editors and screen readers find.
    'pdf.fonttype': 42,
    'svg.fonttype': 'none',
    'savefig.dpi': 300,
    'xtick.labelsize': 7,
    'ytick.labelsize': 7,
}


@contextmanager
def plot(
    panels: int = 1, size: tuple[float, float] = COLUMN
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure in the common style, with panels side by side, for the time of the context.

    Args:
        panels (int): Number of panels.
        size (tuple[float, float]): Width and height of each, in inches.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(panels * size[0], size[1]), layout='constrained')
        FigureCanvasAgg(figure)
        yield figure, list(figure.subplots(1, panels, squeeze=False)[0])


def save_plot(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as PDF, PNG (300 dpi) or SVG; equal figures give equal files.

    Raises:
        ValueError: If the name ends otherwise.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f'{path}: use a name that ends in {", ".join(FORMATS)}')
    stream = io.BytesIO()
    undated = {'.pdf': {'CreationDate': None}, '.svg': {'Date': None}, '.png': {}}[suffix]
    with matplotlib.rc_context({**_STYLE, 'svg.hashsalt': 'vitdown'}):
        figure.savefig(stream, format=suffix[1:], metadata=undated)
    write_atomically(stream.getvalue(), path)
