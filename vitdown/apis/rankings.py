"""What a search finds, and the files and pictures it is shown in."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitdown.datasets.transforms import LoadReIDImage
from vitdown.datasets.transforms.decoding import SKIP_HINT, CorruptImageError
from vitdown.evaluation.index import SearchResult
from vitdown.files import write_atomically
from vitdown.visualization import draw_ranking_list, save_picture

from .embeddings import plain_values
from .inputs import Sample


@dataclass(frozen=True)
class Match:
    """One place of a ranking.

    Attributes:
        rank (int): From 1.
        score (float): Cosine similarity, or Euclidean distance.
        id (int): In the gallery.
        metadata (dict): What the gallery knows about the image, its ``path`` among it.
    """

    rank: int
    score: float
    id: int
    metadata: dict[str, Any]


@dataclass
class Rankings:
    """The best matches of each query, best first.

    ``rankings[i]`` is the list of matches of query ``i``.

    Attributes:
        queries (Sequence[dict]): Samples of the queries, with ``img_path`` and perhaps ``img``.
        result (SearchResult): Scores, ids and metadata as arrays.
        images (Mapping[str, np.ndarray]): Pixels (BGR) of gallery images that are no files, by
            their path: galleries keep none.
        skipped (Mapping[str, str]): Queries that could not be read, and why.
    """

    queries: Sequence[Sample]
    result: SearchResult
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, query: int) -> list[Match]:
        ids, scores = self.result.ids[query].tolist(), self.result.scores[query].tolist()
        count = sum(i >= 0 for i in ids)
        names = list(self.result.metadata)
        rows = zip(*(plain_values(c.data[query, :count]) for c in self.result.metadata.values()))
        metadata = [dict(zip(names, row)) for row in rows] or [{} for _ in range(count)]
        return [Match(n + 1, scores[n], ids[n], metadata[n]) for n in range(count)]

    def records(self) -> list[dict[str, Any]]:
        """``{'query': name, 'matches': [{'rank', 'score', 'id', <metadata>}, ...]}`` for each."""
        return [
            {
                'query': str(sample['img_path']),
                'matches': [
                    {'rank': m.rank, 'score': m.score, 'id': m.id, **m.metadata}
                    for m in self[query]
                ],
            }
            for query, sample in enumerate(self.queries)
        ]

    def save(self, path: str | os.PathLike) -> None:
        """Write ``.jsonl`` (a record a line), ``.csv`` (a match a line) or ``.npz``.

        A CSV file has the columns ``query``, ``rank``, ``score``, ``id`` and the metadata; an
        ``.npz`` file the arrays ``queries`` (Q,), ``scores`` and ``ids`` (Q, k; -1 where fewer
        match), and ``metadata/...`` (Q, k).

        Raises:
            ValueError: If the name ends otherwise.
        """
        writers = {'.npz': self._npz, '.jsonl': self._jsonl, '.csv': self._csv}
        suffix = Path(path).suffix
        if suffix not in writers:
            raise ValueError(f'{path}: use a name that ends in .jsonl, .csv or .npz')
        write_atomically(writers[suffix](), path)

    def picture(self, query: int, size: tuple[int, int] = (160, 80)) -> Image.Image:
        """Ranking list of one query; right and wrong are marked where identities are known.

        Args:
            query (int): Number of the query.
            size (tuple[int, int]): ``(H, W)`` of each image.

        Raises:
            CorruptImageError: If an image can't be read.
        """
        sample, matches = self.queries[query], self[query]
        known = sample.get('identity')
        return draw_ranking_list(
            self._pixels(sample),
            [self._pixels({'img_path': match.metadata['path']}) for match in matches],
            [
                None if known is None or 'identity' not in match.metadata
                else match.metadata['identity'] == known
                for match in matches
            ],
            ['query'],
            [[f'{match.rank}: {match.score:.3f}', *_labels(match.metadata)] for match in matches],
            size,
        )  # fmt: skip

    def save_pictures(self, folder: str | os.PathLike, size: tuple[int, int] = (160, 80)) -> None:
        """Write a picture of each query's ranking list, named after its number and file."""
        for query, sample in enumerate(self.queries):
            name = f'{query:05d}_{Path(str(sample["img_path"])).name}'
            save_picture(self.picture(query, size), folder, name)

    def show(self, query: int = 0, size: tuple[int, int] = (160, 80)) -> None:
        """Open one query's ranking list in the system's image viewer."""
        self.picture(query, size).show()

    def _pixels(self, sample: Sample) -> np.ndarray:
        if 'img' not in sample and sample['img_path'] in self.images:
            sample = {**sample, 'img': self.images[sample['img_path']]}
        try:
            return LoadReIDImage()(dict(sample))['img'][..., ::-1]
        except CorruptImageError as error:
            reason = str(error).removesuffix(SKIP_HINT).strip()
            raise CorruptImageError(
                f'{reason} Galleries keep no pixels: those of arrays go into the attribute images '
                'of the rankings.'
            ) from error

    def _jsonl(self) -> bytes:
        return b''.join(json.dumps(record).encode() + b'\n' for record in self.records())

    def _csv(self) -> bytes:
        stream = io.StringIO(newline='')
        writer = csv.writer(stream)
        writer.writerow(['query', 'rank', 'score', 'id', *self.result.metadata])
        for record in self.records():
            for match in record['matches']:
                writer.writerow([record['query'], *match.values()])
        return stream.getvalue().encode()

    def _npz(self) -> bytes:
        stream = io.BytesIO()
        queries = np.array([str(sample['img_path']) for sample in self.queries])
        columns = {f'metadata/{name}': c.data for name, c in self.result.metadata.items()}
        np.savez(stream, queries=queries, scores=self.result.scores, ids=self.result.ids, **columns)
        return stream.getvalue()


def _labels(metadata: Mapping[str, Any]) -> list[str]:
    return [f'{name} {value}' for name, value in metadata.items() if name != 'path'][:2]
