"""Who counts as a positive and who as junk in the ranking of a query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .inputs import Labels, as_labels

# Indices of a pair, its place in the block, its scores, limits and counts, and their copies
_BYTES_PER_PAIR = 128


@dataclass
class RankingProtocol:
    """Who is positive and who is junk for whom."""

    query_ids: np.ndarray
    gallery_ids: np.ndarray
    query_cameras: np.ndarray | None
    gallery_cameras: np.ndarray | None
    self_index: np.ndarray | None

    @classmethod
    def build(
        cls,
        shape: tuple[int, int],
        query_ids: Labels,
        gallery_ids: Labels,
        query_cameras: Labels | None,
        gallery_cameras: Labels | None,
        self_index: Labels | None,
    ) -> RankingProtocol:
        num_query, num_gallery = shape
        query = as_labels(query_ids, 'query_ids', num_query, 'query features')
        gallery = as_labels(gallery_ids, 'gallery_ids', num_gallery, 'gallery features')
        if (query_cameras is None) != (gallery_cameras is None):
            given, missing = ('gallery', 'query') if query_cameras is None else ('query', 'gallery')
            raise ValueError(
                f'{given}_cameras are given without {missing}_cameras: the cross-camera protocol '
                'needs both; leave out both to keep same-camera entries'
            )
        of_query, of_gallery = None, None
        if query_cameras is not None and gallery_cameras is not None:
            of_query = as_labels(query_cameras, 'query_cameras', num_query, 'query features')
            of_gallery = as_labels(
                gallery_cameras, 'gallery_cameras', num_gallery, 'gallery features'
            )
        if self_index is not None:
            self_index = as_labels(self_index, 'self_index', num_query, 'query features')
            outside = np.flatnonzero((self_index < -1) | (self_index >= num_gallery))
            if len(outside):
                raise ValueError(
                    f'self_index of query {outside[0]} is {self_index[outside[0]]}, outside the '
                    f'gallery of {num_gallery}'
                )
            other = np.flatnonzero((self_index >= 0) & (gallery[self_index] != query))
            if len(other):
                raise ValueError(
                    f'self_index of query {other[0]} (identity {query[other[0]]}) points to a '
                    f'gallery image of identity {gallery[self_index[other[0]]]}'
                )
        return cls(query, gallery, of_query, of_gallery, self_index)

    def __post_init__(self) -> None:
        self._order = np.argsort(self.gallery_ids, kind='stable')
        ordered = self.gallery_ids[self._order]
        self._first = np.searchsorted(ordered, self.query_ids, 'left')
        self._count = np.searchsorted(ordered, self.query_ids, 'right') - self._first

    def pair_bytes(self) -> np.ndarray:
        """Memory that each query's pairs of equal identity take while they are looked at, (Q,)."""
        return self._count * _BYTES_PER_PAIR

    def same_identity(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of equal identity: row in the block, gallery index, whether junk; by row."""
        first, count = self._first[start:stop], self._count[start:stop]
        rows = np.repeat(np.arange(len(count)), count)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
        columns = self._order[np.repeat(first, count) + within]
        junk = np.zeros(len(rows), dtype=bool)
        if self.query_cameras is not None and self.gallery_cameras is not None:
            junk |= self.query_cameras[start + rows] == self.gallery_cameras[columns]
        if self.self_index is not None:
            junk |= self.self_index[start + rows] == columns
        return rows, columns, junk
