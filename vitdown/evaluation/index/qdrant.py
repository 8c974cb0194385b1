"""A gallery in a Qdrant collection, which can be spread over many machines."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

try:
    from qdrant_client import QdrantClient, models
    from qdrant_client.http.exceptions import ResponseHandlingException
except ImportError as error:
    raise ImportError(
        'QdrantGallery needs the qdrant-client package: pip install "vitdown[qdrant]"'
    ) from error

from vitdown.evaluation.functional.inputs import METRICS, Features

from .inputs import (
    check_k,
    check_known,
    check_unused,
    checked_features,
    checked_ids,
    prepared,
)
from .metadata import Between, Columns, Where, append_columns, as_columns, as_values, comparable
from .result import SearchResult, worst_score

_DISTANCES = {'cosine': models.Distance.COSINE, 'euclidean': models.Distance.EUCLID}
_METRICS = {distance: metric for metric, distance in _DISTANCES.items()}
_INDEXES = {
    'b': models.PayloadSchemaType.BOOL,
    'i': models.PayloadSchemaType.INTEGER,
    'u': models.PayloadSchemaType.INTEGER,
    'f': models.PayloadSchemaType.FLOAT,
    'U': models.PayloadSchemaType.KEYWORD,
    'M': models.PayloadSchemaType.DATETIME,
}
_SCHEMA = 'vitdown_columns'
_MODEL = 'vitdown_model'
# Beyond it a double, which is what ranges of the server are made of, skips integers.
_LARGEST_EXACT = 2**53
_POINTS_PER_CALL = 1024
_QUERIES_PER_CALL = 64


class QdrantGallery:
    """Features with ids and metadata in a Qdrant collection; searched like a ``GalleryIndex``.

    The server keeps the vectors, so there is nothing to save or load: opening a collection that is
    there already finds its vectors. Metadata become payload fields with an index each, so that
    conditions are filters of the server. Opening a collection again needs the same ``dim`` and
    ``metric``.

    Args:
        client (QdrantClient): Connected to a server or cluster (``QdrantClient(url)``), or in local
            mode: ``QdrantClient(path='folder')`` or ``QdrantClient(':memory:')``.
        collection (str): Name of the collection; made if it isn't there.
        dim (int): Dimensions of a feature.
        metric (str): ``'cosine'`` or ``'euclidean'`` (L2). Defaults to ``'cosine'``.
        effort (int, optional): Candidates of the graph search (``hnsw_ef``). Defaults to the
            server's choice.
        shards (int, optional): Shards of a new collection. Defaults to the server's choice.
        replicas (int, optional): Copies of each shard of a new collection, on different nodes.
            Defaults to the server's choice.
        model (str): Name of the model whose features these are, kept with a new collection; that
            of an old one stays. Defaults to ``''``, unknown.

    Raises:
        ConnectionError: If no server answers.
        ValueError: If an argument is not valid, or the collection holds vectors of another size or
            metric, or isn't one of this class.

    Example:
        >>> gallery = QdrantGallery(QdrantClient('http://localhost:6333'), 'people', 384)
        >>> gallery.add(features, metadata={'camera': cameras, 'time': times})
        >>> result = gallery.search(queries, k=10, where={'camera': [1, 2]})
    """

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        dim: int,
        metric: str = 'cosine',
        effort: int | None = None,
        shards: int | None = None,
        replicas: int | None = None,
        model: str = '',
    ):
        if metric not in METRICS:
            raise ValueError(f'metric must be one of {METRICS}, not {metric!r}')
        if dim < 1 or (effort is not None and effort < 1):
            raise ValueError(f'dim and effort must be positive, not {dim} and {effort}')
        self.client, self.collection = client, collection
        self.dim, self.metric, self.effort = dim, metric, effort
        if not collection_exists(client, collection):
            client.create_collection(
                collection,
                vectors_config=models.VectorParams(size=dim, distance=_DISTANCES[metric]),
                shard_number=shards,
                replication_factor=replicas,
                metadata={_SCHEMA: None, _MODEL: model},
            )
        self._known_types = self._read_types()
        self._next_id: int | None = None

    @classmethod
    def open(
        cls, client: QdrantClient, collection: str, effort: int | None = None
    ) -> QdrantGallery:
        """A collection that is there already, with its dimensions and metric.

        Raises:
            ConnectionError: If no server answers.
            FileNotFoundError: If there is no such collection.
            ValueError: If it isn't one of this class.
        """
        if not collection_exists(client, collection):
            raise FileNotFoundError(f'there is no Qdrant collection {collection!r}')
        vectors = client.get_collection(collection).config.params.vectors
        if not isinstance(vectors, models.VectorParams) or vectors.distance not in _METRICS:
            raise _foreign(collection)
        return cls(client, collection, vectors.size, _METRICS[vectors.distance], effort)

    def __len__(self) -> int:
        return self.client.count(self.collection, exact=True).count

    def __repr__(self) -> str:
        return (
            f'QdrantGallery({len(self)} vectors in {self.collection!r}, dim={self.dim}, '
            f'metric={self.metric!r}, metadata={sorted(self._types or {})})'
        )

    @property
    def model(self) -> str:
        """Name of the model whose features these are, ``''`` if unknown."""
        return self.client.get_collection(self.collection).config.metadata.get(_MODEL, '')

    @property
    def ids(self) -> np.ndarray:
        """Ids in ascending order, shape (N,), int64."""
        return np.array([point.id for point in self._points()], dtype=np.int64)

    @property
    def metadata(self) -> Columns:
        """Columns in the order of ``ids``, each of shape (N,)."""
        return self._columns([point.payload for point in self._points(with_payload=True)])

    @property
    def column_types(self) -> dict[str, np.dtype]:
        """Types of the metadata columns."""
        return dict(self._types or {})

    def add(
        self,
        features: Features,
        ids: Sequence[int] | np.ndarray | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """Add vectors; all of them or, after an error that can be undone, none.

        Args:
            features (Tensor | np.ndarray): Shape (N, D), floating-point, finite.
            ids (np.ndarray, optional): Shape (N,), non-negative integers that are not in the
                gallery. Defaults to numbers counting up from the largest id in the collection,
                which needs a single writer: several writers give ids.
            metadata (dict, optional): Columns of N booleans, numbers, strings or datetime64 (kept
                to the microsecond), whose names are without double quotes and backslashes. The
                vectors that come into an empty collection decide on the columns, later ones need
                the same.

        Returns:
            np.ndarray: The ids, shape (N,).

        Raises:
            TypeError: If features, ids or a column have a wrong type.
            ValueError: If shapes or names of columns don't fit, features or metadata are not
                finite, or ids are there already.
        """
        features = checked_features(features, 'features', self.dim)
        columns = as_columns(metadata, len(features))
        payloads = _payloads(columns, len(features))
        first = not len(self)
        if first:
            types = {name: _kept(column.dtype) for name, column in columns.items()}
        else:
            types = self._types or {}
            append_columns({name: np.empty(0, types[name]) for name in types}, columns)
        ids = self._new_ids(ids, len(features))
        if first:
            self._write_types(types)
        try:
            for start in range(0, len(ids), _POINTS_PER_CALL):
                part = slice(start, start + _POINTS_PER_CALL)
                points = models.Batch(
                    ids=ids[part].tolist(),
                    vectors=prepared(features[part], self.metric).tolist(),
                    payloads=payloads[part],
                )
                self.client.upsert(self.collection, points, wait=True)
        except BaseException:
            self._delete(ids)
            raise
        self._known_types = types
        self._next_id = max(self._next_id or 0, int(ids.max()) + 1)
        return ids

    def remove(self, ids: Sequence[int] | np.ndarray) -> None:
        """Take vectors out of the gallery.

        Raises:
            KeyError: If an id is not in the gallery; then nothing is removed.
        """
        ids = np.unique(np.asarray(ids, dtype=np.int64))
        check_known(np.setdiff1d(ids, self._known(ids)))
        self._delete(ids)

    def lookup(self, ids: Sequence[int] | np.ndarray) -> Columns:
        """Metadata of some vectors, in the order of ``ids``.

        Raises:
            KeyError: If an id is not in the gallery.
        """
        ids = [int(number) for number in ids]
        points = self.client.retrieve(self.collection, ids, with_payload=True)
        payloads = {point.id: point.payload for point in points}
        check_known(np.array([number for number in ids if number not in payloads]))
        return self._columns([payloads[number] for number in ids])

    def sample_ids(self, count: int) -> np.ndarray:
        """The ``count`` lowest ids, or all where there are fewer."""
        points, _ = self.client.scroll(self.collection, limit=count, with_payload=False)
        return np.array([point.id for point in points], dtype=np.int64)

    def search(self, features: Features, k: int, where: Where | None = None) -> SearchResult:
        """The k best vectors for each query.

        Args:
            features (Tensor | np.ndarray): Queries, shape (Q, D).
            k (int): Number of results; those beyond the matching vectors are padded with id -1.
            where (dict, optional): Maps columns to a value, a collection of values or
                ``Between(low, high)``, all of which must hold.

        Raises:
            KeyError: If a condition names an unknown column.
            TypeError: If features or a condition have a wrong type; functions and masks need the
                vectors at hand, as a ``GalleryIndex`` has them.
            ValueError: If the gallery is empty, an argument doesn't fit, or an end of ``Between``
                is an integer from 2**53 on, where the server rounds.
        """
        return self._search(features, k, where, exact=False)

    def recall_at(self, queries: Features, k: int) -> float:
        """Share of the k true nearest vectors that ``search`` finds, from 0 to 1."""
        truth = self._search(queries, k, None, exact=True).ids[:, : len(self)]
        found = self.search(queries, k).ids
        return float(np.mean([np.isin(a, b).mean() for a, b in zip(truth, found)]))

    def _search(self, features: Features, k: int, where: Where | None, exact: bool) -> SearchResult:
        queries = prepared(checked_features(features, 'features', self.dim), self.metric)
        check_k(k)
        if self._types is None or not len(self):
            raise ValueError('the gallery is empty: add features before searching')
        condition = self._filter({} if where is None else where)
        params = models.SearchParams(hnsw_ef=self.effort, exact=exact)
        requests = [
            models.QueryRequest(
                query=query.tolist(), limit=k, filter=condition, params=params, with_payload=True
            )
            for query in queries
        ]
        scores = np.full((len(queries), k), worst_score(self.metric), dtype=np.float32)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        hits = []
        for start in range(0, len(requests), _QUERIES_PER_CALL):
            part = requests[start : start + _QUERIES_PER_CALL]
            hits += [
                found.points for found in self.client.query_batch_points(self.collection, part)
            ]
        for row, points in enumerate(hits):
            scores[row, : len(points)] = [point.score for point in points]
            ids[row, : len(points)] = [point.id for point in points]
        flat = self._columns([point.payload for points in hits for point in points])
        metadata = {}
        for name, values in flat.items():
            column = np.ma.masked_all(ids.shape, values.dtype)
            column[ids >= 0] = values
            metadata[name] = column
        return SearchResult(scores, ids, metadata)

    def _filter(self, where: Where) -> models.Filter | None:
        if not isinstance(where, Mapping):
            raise TypeError(
                f'a Qdrant collection takes conditions as a dict of columns, not {type(where)}'
            )
        types = self.column_types
        must = []
        for name, condition in where.items():
            if name not in types:
                raise KeyError(f'no metadata column {name!r}, only {sorted(types)}')
            must.append(_condition(name, types[name], condition))
        return models.Filter(must=must) if must else None

    def _new_ids(self, ids: Sequence[int] | np.ndarray | None, length: int) -> np.ndarray:
        if ids is None:
            if self._next_id is None:
                self._next_id = int(self.ids.max(initial=-1)) + 1
            return np.arange(self._next_id, self._next_id + length)
        ids = checked_ids(ids, length)
        check_unused(self._known(ids))
        return ids

    def _known(self, ids: np.ndarray) -> np.ndarray:
        """Those of the ids that are in the collection."""
        found = []
        for start in range(0, len(ids), _POINTS_PER_CALL):
            part = ids[start : start + _POINTS_PER_CALL].tolist()
            found += self.client.retrieve(self.collection, part, with_payload=False)
        return np.array(sorted(point.id for point in found), dtype=np.int64)

    def _delete(self, ids: np.ndarray) -> None:
        for start in range(0, len(ids), _POINTS_PER_CALL):
            part = ids[start : start + _POINTS_PER_CALL].tolist()
            self.client.delete(self.collection, models.PointIdsList(points=part), wait=True)

    def _points(self, with_payload: bool = False) -> Iterator[models.Record]:
        """All points in the order of their ids."""
        offset = None
        while True:
            points, offset = self.client.scroll(
                self.collection, limit=_POINTS_PER_CALL, offset=offset, with_payload=with_payload
            )
            yield from points
            if offset is None:
                return

    def _columns(self, payloads: list[dict]) -> Columns:
        columns = {}
        for name, dtype in (self._types or {}).items():
            values = [payload[name] for payload in payloads]
            if dtype.kind == 'M':
                values = [value.rstrip('Z') for value in values]
            # Strings of the collection may be longer than those of the first vectors.
            columns[name] = np.array(values, dtype=str if dtype.kind == 'U' else dtype)
        return columns

    @property
    def _types(self) -> dict[str, np.dtype] | None:
        """Types of the columns; None as long as nobody added a vector."""
        if self._known_types is None:
            self._known_types = self._read_types()
        return self._known_types

    def _read_types(self) -> dict[str, np.dtype] | None:
        config = self.client.get_collection(self.collection).config
        vectors = config.params.vectors
        if not isinstance(vectors, models.VectorParams) or _SCHEMA not in (config.metadata or {}):
            raise _foreign(self.collection)
        if (vectors.size, vectors.distance) != (self.dim, _DISTANCES[self.metric]):
            raise ValueError(
                f'the collection {self.collection!r} holds vectors of {vectors.size} dimensions '
                f'compared by {vectors.distance.value}, not {self.dim} by {self.metric}'
            )
        types = config.metadata[_SCHEMA]
        # A first add that failed leaves types, which decide nothing.
        if types is None or not len(self):
            return None
        return {name: np.dtype(kind) for name, kind in types.items()}

    def _write_types(self, types: dict[str, np.dtype]) -> None:
        with _quiet_local_mode():
            for name, dtype in types.items():
                self.client.create_payload_index(self.collection, _path(name), _INDEXES[dtype.kind])
        written = {name: dtype.str for name, dtype in types.items()}
        # All keys, so that none is lost whether a server merges or replaces them.
        metadata = self.client.get_collection(self.collection).config.metadata
        self.client.update_collection(self.collection, metadata={**metadata, _SCHEMA: written})


def collection_exists(client: QdrantClient, collection: str) -> bool:
    try:
        return client.collection_exists(collection)
    except ResponseHandlingException as error:
        raise ConnectionError(f'no Qdrant server answers: {error}') from error


def _foreign(collection: str) -> ValueError:
    return ValueError(
        f'the collection {collection!r} was not made by QdrantGallery: choose another name'
    )


@contextmanager
def _quiet_local_mode() -> Iterator[None]:
    """Local mode does without payload indexes and search parameters, and warns each time."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        yield


def _path(name: str) -> str:
    """Where the values of a column are in a payload; in quotes, dots and brackets mean nothing."""
    return f'"{name}"'


def _kept(dtype: np.dtype) -> np.dtype:
    """Type of a column as the collection keeps it."""
    return np.dtype('M8[us]') if dtype.kind == 'M' else dtype


def _payloads(columns: Columns, length: int) -> list[dict]:
    """Columns as one dict for each vector."""
    plain = {}
    for name, column in columns.items():
        if not isinstance(name, str) or '"' in name or '\\' in name:
            raise ValueError(
                f'metadata column {name!r}: Qdrant needs names that are strings without double '
                'quotes and backslashes'
            )
        if column.dtype.kind in 'fM' and (broken := ~np.isfinite(column)).any():
            raise ValueError(
                f'metadata column {name!r} holds NaN, infinity or no time in row '
                f'{np.argmax(broken)}, which Qdrant cannot keep'
            )
        plain[name] = _times(column) if column.dtype.kind == 'M' else column.tolist()
    return [{name: values[row] for name, values in plain.items()} for row in range(length)]


def _times(values: np.ndarray) -> list[str]:
    return [f'{time}Z' for time in np.datetime_as_string(values.astype('M8[us]')).tolist()]


def _condition(name: str, dtype: np.dtype, condition: Any) -> models.Filter | models.FieldCondition:
    if isinstance(condition, Between):
        if dtype.kind not in 'iufM':
            raise TypeError(
                f'metadata column {name!r} holds {dtype}: Between needs numbers or times'
            )
        ends = {'gte': condition.low, 'lte': condition.high}
        ends = {key: _plain(end, name, dtype)[0] for key, end in ends.items() if end is not None}
        for end in ends.values():
            if isinstance(end, int) and abs(end) >= _LARGEST_EXACT:
                raise ValueError(
                    f'metadata column {name!r}: Between({condition.low}, {condition.high}) is '
                    'rounded by Qdrant, which compares integers below 2**53 only; ask for single '
                    'values instead'
                )
        return _between(name, dtype, **ends)
    values = as_values(condition)
    # Without values, no vector fulfils the condition.
    values = _plain(values, name, dtype) if values else []
    if dtype.kind in 'iuU':
        values = [value for value in values if not isinstance(value, float) or value.is_integer()]
        values = values if dtype.kind == 'U' else [int(value) for value in values]
        return models.FieldCondition(key=_path(name), match=models.MatchAny(any=values))
    if dtype.kind == 'b':
        match = [models.MatchValue(value=bool(value)) for value in values if value in (0, 1)]
        either = [models.FieldCondition(key=_path(name), match=each) for each in match]
    else:
        either = [_between(name, dtype, gte=value, lte=value) for value in values]
    if not either:
        return models.FieldCondition(key=_path(name), match=models.MatchAny(any=[]))
    return models.Filter(should=either)


def _between(name: str, dtype: np.dtype, **ends: Any) -> models.FieldCondition:
    of = models.DatetimeRange if dtype.kind == 'M' else models.Range
    return models.FieldCondition(key=_path(name), range=of(**ends))


def _plain(values: Any, name: str, dtype: np.dtype) -> list:
    """Values of a condition as numbers, strings, or times as the collection writes them."""
    values = np.atleast_1d(comparable(values, name, dtype))
    return _times(values) if dtype.kind == 'M' else values.tolist()
