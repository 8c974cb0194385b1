"""Searchable, persistent galleries on FAISS."""

from .gallery_index import GalleryIndex, SearchResult
from .metadata import Between
from .recommend import Recommendation, recommend
from .storage import GalleryFileError

__all__ = [
    'Between',
    'GalleryFileError',
    'GalleryIndex',
    'Recommendation',
    'SearchResult',
    'recommend',
]
