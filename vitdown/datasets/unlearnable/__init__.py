"""Class-wise keyed convolution that makes published images unlearnable.

The method's paper (Sadasivan et al., CVPR 2023, arXiv 2303.04278) is titled "CUDA:
Convolution-based Unlearnable Datasets"; it has nothing to do with NVIDIA's CUDA.
"""

from .convolution import convolve_batch, convolve_image, correlate
from .filters import class_filters, poison_draws, poison_mask
from .key import KEY_VARIABLE, Key, KeyUnavailableError, read_key

__all__ = [
    'KEY_VARIABLE',
    'Key',
    'KeyUnavailableError',
    'class_filters',
    'convolve_batch',
    'convolve_image',
    'correlate',
    'poison_draws',
    'poison_mask',
    'read_key',
]
