"""A gallery of features that grows, shrinks, is searched and survives crashes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import faiss
import numpy as np
import torch

from vitdown.evaluation.functional.inputs import METRICS, Features

from .backend import (
    build_index,
    points_for_training,
    scan_rows,
    scans_exactly,
    search_rows,
    set_effort,
)
from .inputs import (
    as_ids,
    check_dim,
    check_k,
    check_known,
    check_unused,
    checked_features,
    checked_ids,
    prepared,
)
from .metadata import Columns, Where, append_columns, as_columns, matching
from .result import SearchResult, worst_score
from .storage import GalleryFileError, load_gallery, save_gallery

_BLOCK = 65536
_MAX_K_ON_GPU = 2048
_TRAINING_POINTS = 262144
_COLUMN = 'metadata/'


class GalleryIndex:
    """Features with ids and metadata in a FAISS index.

    Removed vectors are marked and never found again, whatever the index type; ``compact`` frees
    their memory. Ids of removed vectors may be used again.

    Args:
        dim (int): Dimensions of a feature.
        factory (str): FAISS factory string, such as ``'Flat'``, ``'IVF1024,Flat'``, ``'HNSW32'``
            or ``'IVF1024,PQ48'``; see ``recommend``. Defaults to ``'Flat'``.
        metric (str): ``'cosine'`` or ``'euclidean'`` (L2). Defaults to ``'cosine'``.
        effort (int, optional): How much an approximate index looks at: lists of an IVF (default:
            1/32 of them, at least 8), candidates of an HNSW (default: 64).
        model (str): Name of the model whose features these are, kept with the gallery; see
            :func:`vitdown.apis.fingerprint`. Defaults to ``''``, unknown.

    Raises:
        ValueError: If an argument is not valid or FAISS refuses the factory string.

    Example:
        >>> gallery = GalleryIndex(384)
        >>> gallery.add(features, metadata={'camera': cameras, 'time': times})
        >>> result = gallery.search(queries, k=10, where={'camera': [1, 2]})
        >>> gallery.save('gallery')
        >>> gallery = GalleryIndex.load('gallery', mmap=True)
    """

    def __init__(
        self,
        dim: int,
        factory: str = 'Flat',
        metric: str = 'cosine',
        effort: int | None = None,
        model: str = '',
    ):
        if metric not in METRICS:
            raise ValueError(f'metric must be one of {METRICS}, not {metric!r}')
        check_dim(dim)
        if effort is not None and effort < 1:
            raise ValueError(f'effort must be positive, not {effort}')
        kind = faiss.METRIC_INNER_PRODUCT if metric == 'cosine' else faiss.METRIC_L2
        try:
            self._index = build_index(dim, factory, kind)
        except RuntimeError as error:
            raise ValueError(
                f'FAISS refuses the factory string {factory!r} for {dim} dimensions and the '
                f'metric {metric!r}: {_reason(error)}'
            ) from None
        if 'IDMap' in factory:
            raise ValueError(f'{factory!r}: GalleryIndex keeps ids itself, leave IDMap out')
        self.dim, self.factory, self.metric, self.effort = dim, factory, metric, effort
        self.model = model
        set_effort(self._index, effort)
        self._ids = np.empty(0, dtype=np.int64)
        self._alive = np.empty(0, dtype=bool)
        self._columns: Columns = {}
        self._next_id = 0
        self._gpu = None
        self._mapped = False

    def __len__(self) -> int:
        return int(np.count_nonzero(self._alive))

    def __repr__(self) -> str:
        return (
            f'GalleryIndex({len(self)} vectors, dim={self.dim}, factory={self.factory!r}, '
            f'metric={self.metric!r}, metadata={sorted(self._columns)})'
        )

    @property
    def ids(self) -> np.ndarray:
        """Ids in the order of adding, shape (N,), int64."""
        return self._ids[self._alive]

    @property
    def metadata(self) -> Columns:
        """Columns in the order of ``ids``, each of shape (N,)."""
        return {name: column[self._alive] for name, column in self._columns.items()}

    @property
    def column_types(self) -> dict[str, np.dtype]:
        """Types of the metadata columns."""
        return {name: column.dtype for name, column in self._columns.items()}

    def lookup(self, ids: Sequence[int] | np.ndarray) -> Columns:
        """Metadata of some vectors, in the order of ``ids``.

        Raises:
            KeyError: If an id is not in the gallery.
        """
        ids = np.asarray(ids, dtype=np.int64)
        found = [np.flatnonzero((self._ids == number) & self._alive) for number in ids]
        check_known(ids[[not len(rows) for rows in found]])
        rows = np.array([rows[0] for rows in found], dtype=np.int64)
        return {name: column[rows] for name, column in self._columns.items()}

    def sample_ids(self, count: int) -> np.ndarray:
        """At most ``count`` ids, spread evenly over the gallery."""
        ids = self.ids
        return ids[np.unique(np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(np.int64))]

    @property
    def is_trained(self) -> bool:
        """Whether vectors can be added without training (IVF and PQ need it)."""
        return self._index.is_trained

    def train(self, features: Features) -> None:
        """Learn lists and code books; ``add`` does it with its first features if need be.

        Of more than 262 144 vectors, and than FAISS wants for as many lists, a random part is used
        (seeded).

        Raises:
            RuntimeError: If vectors were added already.
            ValueError: If there are too few features for the factory string.
        """
        self._check_writable()
        if len(self._ids):
            raise RuntimeError('the gallery holds vectors already: train a new one')
        features = checked_features(features, 'features', self.dim)
        limit = max(_TRAINING_POINTS, points_for_training(self._index))
        if len(features) > limit:
            generator = torch.Generator().manual_seed(0)
            chosen = torch.randperm(len(features), generator=generator)[:limit]
            features = features[chosen.to(features.device)]
        try:
            self._index.train(prepared(features, self.metric))
        except RuntimeError as error:
            if 'training points' not in str(error):
                raise
            raise ValueError(
                f'{len(features)} vectors are too few to train {self.factory!r} '
                f'({_reason(error)}): train it with more, or choose a smaller index (see recommend)'
            ) from None

    def add(
        self,
        features: Features,
        ids: Sequence[int] | np.ndarray | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """Append vectors; all of them or, after an error, none.

        Args:
            features (Tensor | np.ndarray): Shape (N, D), floating-point, finite.
            ids (np.ndarray, optional): Shape (N,), non-negative integers that are not in the
                gallery. Defaults to numbers counting up from the largest id so far.
            metadata (dict, optional): Columns of N booleans, numbers, strings or datetime64. The
                first vectors decide on the columns, later ones need the same.

        Returns:
            np.ndarray: The ids, shape (N,).

        Raises:
            TypeError: If features, ids or a column have a wrong type.
            ValueError: If shapes don't fit, features are not finite, or ids are there already.
        """
        self._check_writable()
        features = checked_features(features, 'features', self.dim)
        ids = self._new_ids(ids, len(features))
        columns = as_columns(metadata, len(features))
        if len(self._ids):
            columns = append_columns(self._columns, columns)
        if not self._index.is_trained:
            self.train(features)
        try:
            for block in features.split(_BLOCK):
                block = prepared(block, self.metric)
                self._index.add(block)
                if self._gpu is not None:
                    self._gpu.add(block)
        except BaseException:
            self._forget_added(columns)
            raise
        self._columns = columns
        self._ids = np.concatenate([self._ids, ids])
        self._alive = np.concatenate([self._alive, np.ones(len(ids), dtype=bool)])
        self._next_id = max(self._next_id, int(ids.max()) + 1)
        return ids

    def _forget_added(self, columns: Columns) -> None:
        """Undo an ``add`` that was interrupted between two blocks."""
        if not len(self._ids):
            self._index.reset()
            self._gpu = None
            return
        # Not every index can take vectors out: they are marked like removed ones.
        added = self._index.ntotal - len(self._ids)
        self._columns = {name: column[: self._index.ntotal] for name, column in columns.items()}
        self._ids = np.concatenate([self._ids, np.full(added, -1)])
        self._alive = np.concatenate([self._alive, np.zeros(added, dtype=bool)])

    def remove(self, ids: Sequence[int] | np.ndarray) -> None:
        """Take vectors out of the gallery; their memory is freed by ``compact``.

        Raises:
            KeyError: If an id is not in the gallery; then nothing is removed.
            TypeError: If ids are not integers.
        """
        self._check_writable()
        ids = np.unique(as_ids(ids))
        chosen = np.isin(self._ids, ids) & self._alive
        check_known(np.setdiff1d(ids, self._ids[chosen]))
        self._alive = self._alive & ~chosen

    def compact(self) -> None:
        """Free the memory of removed vectors by building the index anew, without training.

        Needs room for a second copy of the vectors. Quantized vectors are decoded and encoded
        again, which can cost some accuracy.
        """
        self._check_writable()
        if self._alive.all():
            return
        vectors = self._index.reconstruct_n(0, self._index.ntotal)[self._alive]
        self._index.reset()
        if len(vectors):
            self._index.add(vectors)
        self._ids, self._columns = self.ids, self.metadata
        self._alive = np.ones(len(self._ids), dtype=bool)
        if self._gpu is not None:
            self.to_gpu()

    def search(self, features: Features, k: int, where: Where | None = None) -> SearchResult:
        """The k best vectors for each query.

        With an approximate index, a condition widens the search as it narrows the gallery, and a
        search that found fewer than k goes through all matching vectors.

        Args:
            features (Tensor | np.ndarray): Queries, shape (Q, D).
            k (int): Number of results; those beyond the matching vectors are padded with id -1.
            where (dict | callable | np.ndarray, optional): Which vectors may be found. A dict maps
                columns to a value, a collection of values or ``Between(low, high)``, all of which
                must hold; a function takes the columns and returns a boolean per vector; an array
                holds a boolean per vector, in the order of ``ids``.

        Raises:
            KeyError: If a condition names an unknown column.
            TypeError: If features have a wrong type.
            ValueError: If the gallery is empty, or an argument doesn't fit.
        """
        queries = prepared(checked_features(features, 'features', self.dim), self.metric)
        check_k(k)
        if not len(self):
            raise ValueError('the gallery is empty: add features before searching')
        allowed = None if self._alive.all() else np.asarray(self._alive)
        if where is not None:
            allowed = np.zeros(len(self._ids), dtype=bool)
            columns = self._columns if self._alive.all() else self.metadata
            allowed[self._alive] = matching(columns, where, len(self))
        found = min(k, len(self) if allowed is None else int(np.count_nonzero(allowed)))
        shape = (len(queries), k)
        worst = worst_score(self.metric)
        scores = np.full(shape, worst, dtype=np.float32)
        rows = np.full(shape, -1, dtype=np.int64)
        if found:
            if self._gpu is not None and allowed is None and found <= _MAX_K_ON_GPU:
                best = self._gpu.search(queries, found)
            else:
                best = search_rows(self._index, queries, found, allowed)
            scores[:, :found], rows[:, :found] = best
        if self.metric == 'euclidean':
            scores = np.sqrt(np.maximum(scores, 0))
        padding = rows < 0
        scores[padding] = worst
        return SearchResult(
            scores,
            np.where(padding, -1, self._ids[rows]),
            {
                name: np.ma.MaskedArray(column[rows], mask=padding)
                for name, column in self._columns.items()
            },
        )

    def recall_at(self, queries: Features, k: int, vectors: Features | None = None) -> float:
        """Share of the k true nearest vectors that ``search`` finds, from 0 to 1.

        Args:
            queries (Tensor | np.ndarray): Shape (Q, D).
            k (int): Number of results.
            vectors (Tensor | np.ndarray, optional): The original features in the order of ``ids``.
                Needed by indexes that keep codes only. Defaults to the stored vectors.

        Raises:
            ValueError: If the index keeps codes only and ``vectors`` is not given, or doesn't fit.
        """
        ids = self.search(queries, k).ids
        k = min(k, len(self))
        queries = prepared(checked_features(queries, 'queries', self.dim), self.metric)
        if vectors is not None:
            stored = checked_features(vectors, 'vectors', self.dim)
            if len(stored) != len(self):
                raise ValueError(f'{len(stored)} vectors for a gallery of {len(self)}')
            truth = faiss.IndexFlat(self.dim, self._index.metric_type)
            for block in stored.split(_BLOCK):
                truth.add(prepared(block, self.metric))
            true_ids = self.ids[truth.search(queries, k)[1]]
        elif scans_exactly(self._index):
            allowed = None if self._alive.all() else np.asarray(self._alive)
            true_ids = self._ids[scan_rows(self._index, queries, k, allowed)[1]]
        else:
            raise ValueError(
                f'{self.factory!r} keeps codes instead of vectors: give the original vectors'
            )
        return float(np.mean([np.isin(a, b).mean() for a, b in zip(true_ids, ids)]))

    def save(self, path: str | os.PathLike) -> None:
        """Write the gallery to a directory, replacing the one saved there before.

        A kill at any moment leaves the old or the new gallery. Everything is written anew, so save
        after a batch of changes rather than after each; there must be room for both on the disk.

        Raises:
            FileExistsError: If the directory holds something else.
        """
        self._check_writable()
        arrays = {'ids': self._ids, 'alive': self._alive}
        arrays |= {_COLUMN + name: column for name, column in self._columns.items()}
        settings = {
            'dim': self.dim,
            'factory': self.factory,
            'metric': self.metric,
            'effort': self.effort,
            'model': self.model,
            'next_id': self._next_id,
        }
        save_gallery(path, self._index, arrays, settings)

    @classmethod
    def load(cls, path: str | os.PathLike, mmap: bool = False) -> GalleryIndex:
        """Read a saved gallery.

        Args:
            path (str): The directory.
            mmap (bool): Map the files: opens at once, shares memory among processes, and is
                read-only. Checks sizes of files rather than their sums. Defaults to False.

        Raises:
            FileNotFoundError: If there is no gallery.
            GalleryFileError: If a file is missing, torn or damaged.
        """
        index, arrays, settings = load_gallery(path, mmap)
        next_id = settings.pop('next_id')
        gallery = cls(**settings)
        if index.d != gallery.dim or any(len(a) != index.ntotal for a in arrays.values()):
            raise GalleryFileError(f'{path}: the parts of the gallery do not fit each other')
        gallery._index = index
        set_effort(index, gallery.effort)
        gallery._ids, gallery._alive = arrays.pop('ids'), arrays.pop('alive')
        gallery._columns = {name.removeprefix(_COLUMN): a for name, a in arrays.items()}
        gallery._next_id = next_id
        gallery._mapped = mmap
        return gallery

    def to_gpu(self, device: int = 0) -> GalleryIndex:
        """Keep a copy on a GPU for searches without conditions (k up to 2048).

        Searches with a condition, or with removed vectors before ``compact``, run on the CPU.

        Returns:
            GalleryIndex: This gallery.

        Raises:
            RuntimeError: If FAISS sees no GPU, or has no GPU version of the index (HNSW).
        """
        if faiss.get_num_gpus() <= device:
            raise RuntimeError(f'FAISS sees {faiss.get_num_gpus()} GPUs, there is no GPU {device}')
        try:
            self._gpu = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device, self._index)
        except RuntimeError as error:
            raise RuntimeError(
                f'FAISS can not hold {self.factory!r} on a GPU ({_reason(error)}): stay on the '
                'CPU, or take a Flat, IVF or IVF,PQ index'
            ) from None
        return self

    def _check_writable(self) -> None:
        if self._mapped:
            raise RuntimeError('a memory-mapped gallery is read-only: load it with mmap=False')

    def _new_ids(self, ids: Sequence[int] | np.ndarray | None, length: int) -> np.ndarray:
        if ids is None:
            return np.arange(self._next_id, self._next_id + length)
        ids = checked_ids(ids, length)
        check_unused(self._ids[np.isin(self._ids, ids) & self._alive])
        return ids


def _reason(error: RuntimeError) -> str:
    """What FAISS says, without the place in its sources."""
    return str(error).strip().rpartition(': ')[2]
