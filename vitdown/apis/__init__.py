"""Re-identification with a trained model: embed, index, search, rank, verify."""

from .embeddings import Embeddings, load_embeddings, read_metadata
from .fingerprint import fingerprint
from .galleries import create_gallery, open_gallery
from .inputs import list_images
from .rankings import Match, Rankings
from .reid_inferencer import ReIDInferencer, Verification

__all__ = [
    'Embeddings',
    'Match',
    'Rankings',
    'ReIDInferencer',
    'Verification',
    'create_gallery',
    'fingerprint',
    'list_images',
    'load_embeddings',
    'open_gallery',
    'read_metadata',
]
