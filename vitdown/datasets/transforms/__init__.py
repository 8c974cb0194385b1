"""Transforms of re-ID pipelines that mmcv and mmpretrain lack."""

from .conv_unlearnable import (
    ConvUnlearnable,
    RandomConvBlur,
    check_key_arguments,
    check_key_sources,
)
from .decoding import CorruptImageError, decode_image
from .erasing import PixelRandomErasing
from .formatting import PackReIDInputs
from .geometric import Letterbox
from .loading import LoadReIDImage

__all__ = [
    'ConvUnlearnable',
    'CorruptImageError',
    'Letterbox',
    'LoadReIDImage',
    'PackReIDInputs',
    'PixelRandomErasing',
    'RandomConvBlur',
    'check_key_arguments',
    'check_key_sources',
    'decode_image',
]
