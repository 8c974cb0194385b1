"""Features of many dimensions as points in a plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from .style import COLOURS, plot

_MARKERS = 'os^Dv<>PX*'


def project_tsne(features: np.ndarray, perplexity: float = 30, seed: int = 0) -> np.ndarray:
    """t-SNE of cosine distances (van der Maaten & Hinton, 2008).

    Args:
        features (np.ndarray): (N, D), N at least 3.
        perplexity (float): About how many neighbours count; at most (N - 1) / 3 are taken.
        seed (int): Of the optimisation.

    Returns:
        np.ndarray: (N, 2).

    Raises:
        ImportError: If scikit-learn is missing.
        ValueError: If there are too few features.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError('t-SNE needs scikit-learn: pip install "vitdown[vis]"') from error
    unit = _unit_vectors(features)
    perplexity = min(perplexity, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, random_state=seed, init='random').fit_transform(unit)


def project_umap(features: np.ndarray, neighbours: int = 15, seed: int = 0) -> np.ndarray:
    """UMAP of cosine distances (McInnes et al., arXiv 1802.03426).

    Args:
        features (np.ndarray): (N, D), N at least 3.
        neighbours (int): Neighbours of a point that count; at most N - 1 are taken.
        seed (int): Of the optimisation.

    Returns:
        np.ndarray: (N, 2).

    Raises:
        ImportError: If umap-learn is missing.
        ValueError: If there are too few features, or ``neighbours`` is below 2.
    """
    try:
        from umap import UMAP
    except ImportError as error:
        raise ImportError('UMAP needs umap-learn: pip install "vitdown[umap]"') from error
    if neighbours < 2:
        raise ValueError(f'neighbours must be at least 2, not {neighbours}')
    unit = _unit_vectors(features)
    # Its spectral start needs more points than dimensions, and connected ones.
    return UMAP(
        n_neighbors=min(neighbours, len(unit) - 1), random_state=seed, n_jobs=1, init='random'
    ).fit_transform(unit)


def _unit_vectors(features: np.ndarray) -> np.ndarray:
    """Of which squared Euclidean distances are twice the cosine distances."""
    if len(features) < 3:
        raise ValueError(f'a plane needs at least 3 features, there are {len(features)}')
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, 1e-12)


def draw_feature_map(
    points: np.ndarray, labels: Sequence, markers: Sequence | None = None, what: str = 'identity'
) -> Figure:
    """Points of one label in one colour and, as there are few colours, one shape.

    Args:
        points (np.ndarray): (N, 2).
        labels (Sequence): (N,) what colours and shapes stand for.
        markers (Sequence, optional): (N,) booleans, points to draw hollow, e.g. queries.
        what (str): What the labels are called.
    """
    values, numbers = np.unique(np.asarray(labels), return_inverse=True)
    hollow = np.zeros(len(points), bool) if markers is None else np.asarray(markers)
    with plot(size=(3.4, 3.0)) as (figure, (axes,)):
        for number, value in enumerate(values):
            colour = COLOURS[number % len(COLOURS)]
            style = dict(
                marker=_MARKERS[number // len(COLOURS) % len(_MARKERS)], s=10, linewidths=0.7
            )
            chosen = numbers == number
            full, empty = points[chosen & ~hollow], points[chosen & hollow]
            axes.scatter(*full.T, color=colour, label=str(value), **style)
            axes.scatter(*empty.T, facecolors='none', edgecolors=colour, **style)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if len(values) <= len(COLOURS):
            axes.legend(title=what, loc='center left', bbox_to_anchor=(1, 0.5))
    return figure
