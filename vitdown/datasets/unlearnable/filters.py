"""Filters and the choice of images, drawn from a seed.

All numbers come from one stream of NumPy's legacy generator (MT19937), which NumPy keeps frozen, in
the order of the paper's code, so that a seed gives the same filters everywhere and for ever. The
global generator is not touched.
"""

from collections.abc import Sequence
from numbers import Integral, Real
from types import ModuleType
from typing import Any

import numpy as np

Seed = int | Sequence[int]
# Images are filtered with filters rounded to float32.
_LARGEST = float(np.finfo(np.float32).max)


def check_filter_options(
    kernel_size: int, blur_parameter: float | None, center: float | None = 1.0
) -> None:
    """Refuse options that give no filters; see :func:`class_filters`.

    Raises:
        ValueError: The size is no odd integer, a number is out of range, or all cells would be 0.
    """
    if not _is_a(Integral, kernel_size) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f'kernel_size must be odd and positive, got {kernel_size!r}.')
    if blur_parameter is not None and not (
        _is_a(Real, blur_parameter) and 0 <= blur_parameter <= _LARGEST
    ):
        raise ValueError(
            f'blur_parameter must be finite in float32 and not negative, got {blur_parameter!r}.'
        )
    if center is not None and not (_is_a(Real, center) and 0 < center <= _LARGEST):
        raise ValueError(f'center must be finite in float32 and positive, or None, got {center!r}.')
    if center is None and blur_parameter == 0:
        raise ValueError('Without a center, blur_parameter must be above 0: all cells would be 0.')


def check_protection_size(kernel_size: int) -> None:
    """Refuse filters of one cell, which are the same for all classes.

    Raises:
        ValueError: The size is 1.
    """
    if kernel_size == 1:
        raise ValueError('A filter of kernel_size 1 protects nothing; take 3 or more.')


def _is_a(kind: type, value: Any) -> bool:
    """Whether a value is a number of this kind; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_number(num_classes: int) -> None:
    if not _is_a(Integral, num_classes) or num_classes < 1:
        raise ValueError(f'num_classes must be an integer of at least 1, got {num_classes!r}.')


def draw_filter(
    random: np.random.RandomState | ModuleType,
    kernel_size: int,
    blur_parameter: float | None,
    center: float | None = 1.0,
) -> np.ndarray:
    """Draw one filter ``(k, k)``: uniform cells, one random cell set to ``center``.

    See :func:`class_filters` for the arguments; the stream advances as it does there.
    """
    high = 1.0 if blur_parameter is None else blur_parameter
    # The paper's code draws a filter for each of three channels and uses the first for all.
    cells = random.uniform(0, high, size=(3, kernel_size, kernel_size))[0]
    if center is not None:
        row = random.randint(kernel_size)
        column = random.randint(kernel_size)
        cells[row, column] = center
    return cells


def class_filters(
    seed: Seed,
    num_classes: int,
    kernel_size: int = 3,
    blur_parameter: float | None = 0.3,
    center: float | None = 1.0,
    same_filter: bool = False,
) -> np.ndarray:
    """One random filter a class (section 4 of the paper; bit-exact with its code).

    Args:
        seed: Seed of the stream: an integer below 2**32, or several 32-bit words.
        num_classes: Number of classes K. More classes leave the filters of the first ones as they
            are.
        kernel_size: Odd side of the filters in pixels.
        blur_parameter: Upper end of the uniform distribution of the cells; None means 1.
        center: Value of one cell at a random place, which keeps the image recognisable, above 0;
            None leaves all cells to the uniform distribution.
        same_filter: Use class 0's filter for all classes: blur that tells no class apart, the
            paper's control.

    Returns:
        ``(K, k, k)`` float64, not normalised. Each filter is meant for all channels of an image.

    Raises:
        ValueError: An argument is out of range.
    """
    _check_number(num_classes)
    check_filter_options(kernel_size, blur_parameter, center)
    random = np.random.RandomState(seed)
    filters = [draw_filter(random, kernel_size, blur_parameter, center) for _ in range(num_classes)]
    if same_filter:
        filters = filters[:1] * num_classes
    return np.stack(filters)


def poison_draws(
    seed: Seed, num_classes: int, kernel_size: int, num_images: int, center: float | None = 1.0
) -> np.ndarray:
    """The uniform number in [0, 1) that decides about each image, in the dataset's order.

    The numbers follow those of the filters in the stream, so they depend on the number of classes,
    the kernel size and whether there is a ``center``; the first n don't depend on ``num_images``.

    Returns:
        ``(num_images,)`` float64.
    """
    _check_number(num_classes)
    check_filter_options(kernel_size, None, center)
    random = np.random.RandomState(seed)
    for _ in range(num_classes):
        draw_filter(random, kernel_size, None, center)
    return random.random_sample(num_images)


def poison_mask(
    seed: Seed,
    num_classes: int,
    kernel_size: int,
    num_images: int,
    fraction: float,
    center: float | None = 1.0,
) -> np.ndarray:
    """Which images of a dataset are filtered when only a fraction of them is.

    Returns:
        ``(num_images,)`` bool: :func:`poison_draws` below ``fraction``.

    Raises:
        ValueError: ``fraction`` is no number of 0..1.
    """
    if not (_is_a(Real, fraction) and 0 <= fraction <= 1):
        raise ValueError(f'The fraction of images to protect must be 0 to 1, got {fraction!r}.')
    return poison_draws(seed, num_classes, kernel_size, num_images, center) < fraction
