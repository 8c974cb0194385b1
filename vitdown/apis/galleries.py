"""Galleries by the text that names them: a folder, or a Qdrant collection."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vitdown.evaluation.index import GalleryIndex

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from vitdown.evaluation.index.qdrant import QdrantGallery

    Gallery = GalleryIndex | QdrantGallery

_SCHEMES = ('http://', 'https://', 'qdrant:')
_REMEDY = 'add to it (tools/index.py --append), or name another place'


def open_gallery(location: str | os.PathLike, mmap: bool = False) -> Gallery:
    """A gallery that is there already.

    Args:
        location (str): Folder of a saved :class:`GalleryIndex`; or ``http://host:6333/collection``
            of a Qdrant server (with the key in ``QDRANT_API_KEY`` if it needs one); or
            ``qdrant:folder/collection`` for a collection that Qdrant's client keeps itself.
        mmap (bool): Map a folder's files instead of reading them; then it is read-only.

    Raises:
        ConnectionError: If no Qdrant server answers.
        FileNotFoundError: If there is none.
    """
    location = os.fspath(location)
    if not is_collection(location):
        return GalleryIndex.load(location, mmap=mmap)
    from vitdown.evaluation.index.qdrant import QdrantGallery

    return QdrantGallery.open(*_collection(location))


def create_gallery(
    location: str | os.PathLike,
    dim: int,
    factory: str = 'Flat',
    metric: str = 'cosine',
    model: str = '',
) -> Gallery:
    """An empty gallery for a place; a folder is written by ``gallery.save(location)``.

    Args:
        location (str): See :func:`open_gallery`.
        dim (int): Dimensions of a feature.
        factory (str): FAISS index of a folder; Qdrant chooses its own.
        metric (str): ``'cosine'`` or ``'euclidean'``.
        model (str): Fingerprint of the model.

    Raises:
        ConnectionError: If no Qdrant server answers.
        FileExistsError: If there is a gallery already.
    """
    location = os.fspath(location)
    if not is_collection(location):
        if os.path.exists(os.path.join(location, 'manifest.json')):
            raise FileExistsError(f'{location} holds a gallery already: {_REMEDY}')
        return GalleryIndex(dim, factory, metric, model=model)
    from vitdown.evaluation.index.qdrant import QdrantGallery, collection_exists

    client, collection = _collection(location)
    if collection_exists(client, collection):
        raise FileExistsError(f'there is a Qdrant collection {collection!r} already: {_REMEDY}')
    return QdrantGallery(client, collection, dim, metric, model=model)


def is_collection(location: str) -> bool:
    """Whether a location names a Qdrant collection rather than a folder."""
    return location.startswith(_SCHEMES)


def _collection(location: str) -> tuple[QdrantClient, str]:
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise ImportError(
            f'{location} needs the qdrant-client package: pip install "vitdown[qdrant]"'
        ) from error
    server, _, collection = location.rstrip('/').rpartition('/')
    if not collection or server.endswith(('/', ':')) or server in ('', 'http:', 'https:'):
        raise ValueError(
            f'{location}: name the collection too, as in http://localhost:6333/people or '
            'qdrant:folder/people'
        )
    if server.startswith('qdrant:'):
        return QdrantClient(path=server.removeprefix('qdrant:')), collection
    return QdrantClient(server, api_key=os.environ.get('QDRANT_API_KEY')), collection
