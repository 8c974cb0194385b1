"""Which index to take for a number of vectors and a memory budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .backend import POINTS_PER_CENTROID

_EXACT_UP_TO = 50_000
_GRAPH_UP_TO = 1_000_000
# More lists take too long to train and to choose from.
_MOST_LISTS = 65_536


@dataclass(frozen=True)
class Recommendation:
    """An index for ``GalleryIndex(dim, factory=...)``.

    Attributes:
        factory (str): FAISS factory string.
        memory_mb (float): Estimated size in MiB, ids included, metadata not.
        reason (str): Why this one, in a sentence.
    """

    factory: str
    memory_mb: float
    reason: str


def recommend(num_vectors: int, dim: int, memory_mb: float | None = None) -> Recommendation:
    """The most accurate index that is quick enough for a gallery's size and fits the memory.

    Exact search up to 50 000 vectors; a graph (HNSW) up to a million; inverted lists (IVF) above
    that; and whenever vectors don't fit, inverted lists with 8-bit or product-quantized codes.

    Args:
        num_vectors (int): Expected size of the gallery.
        dim (int): Dimensions of a feature.
        memory_mb (float, optional): Budget in MiB. Defaults to no limit.

    Raises:
        ValueError: If no index fits, or an argument is not positive.
    """
    for name, value in (('num_vectors', num_vectors), ('dim', dim), ('memory_mb', memory_mb)):
        if value is not None and value <= 0:
            raise ValueError(f'{name} must be positive, not {value}')
    nlist = min(int(4 * math.sqrt(num_vectors)), num_vectors // POINTS_PER_CENTROID, _MOST_LISTS)
    lists = 4 * dim * nlist
    options = []
    if num_vectors <= _EXACT_UP_TO:
        options.append(('Flat', 4 * dim, 0, 'exact search is quick at this size'))
    elif num_vectors <= _GRAPH_UP_TO:
        options.append(('HNSW32', 4 * dim + 4 * 66 + 12, 0, 'a graph is quickest and fits'))
    if nlist:
        options += [
            (f'IVF{nlist},Flat', 4 * dim + 8, lists, 'whole vectors in inverted lists fit'),
            (f'IVF{nlist},SQ8', dim + 8, lists, '8-bit codes fit, whole vectors do not'),
        ]
    if nlist and num_vectors >= 256 * POINTS_PER_CENTROID:
        sizes = (m for m in (dim // 2, dim // 4, dim // 8, dim // 16) if m and dim % m == 0)
        options += [
            (f'IVF{nlist},PQ{m}', m + 8, lists + 1024 * dim, f'codes of {m} bytes fit, longer not')
            for m in sizes
        ]
    sized = [
        Recommendation(factory, (num_vectors * (each + 9) + fixed) / 2**20, reason)
        for factory, each, fixed, reason in options
    ]
    for option in sized:
        if memory_mb is None or option.memory_mb <= memory_mb:
            return option
    smallest = min(sized, key=lambda option: option.memory_mb)
    raise ValueError(
        f'no index of {num_vectors} vectors of {dim} dimensions fits {memory_mb} MiB; the '
        f'smallest, {smallest.factory}, needs {smallest.memory_mb:.1f} MiB'
    )
