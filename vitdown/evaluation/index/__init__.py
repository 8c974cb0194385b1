"""Searchable, persistent galleries on FAISS."""

from .gallery_index import GalleryIndex
from .metadata import Between
from .recommend import Recommendation, recommend
from .result import SearchResult
from .storage import GalleryFileError

__all__ = [
    'Between',
    'GalleryFileError',
    'GalleryIndex',
    'Recommendation',
    'SearchResult',
    'recommend',
]
