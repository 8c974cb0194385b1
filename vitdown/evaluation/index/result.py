"""What a search returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class SearchResult:
    """The best vectors for each query, best first.

    Attributes:
        scores (np.ndarray): Shape (Q, k), float32: cosine similarities or Euclidean distances.
        ids (np.ndarray): Shape (Q, k), int64; -1 where fewer than k vectors match, there the
            score is the worst possible: minus infinity, for distances infinity.
        metadata (dict): Masked arrays of shape (Q, k), masked where the id is -1.
    """

    scores: np.ndarray
    ids: np.ndarray
    metadata: dict[str, np.ma.MaskedArray] = field(default_factory=dict)


def worst_score(metric: str) -> float:
    """Score of a place that no vector takes."""
    return -np.inf if metric == 'cosine' else np.inf
