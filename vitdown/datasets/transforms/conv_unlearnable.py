"""Class-wise keyed convolution as pipeline transforms."""

import inspect
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from vitdown.registry import TRANSFORMS

from ..unlearnable import (
    KEY_VARIABLE,
    KeyUnavailableError,
    class_filters,
    convolve_image,
    poison_mask,
    read_key,
)
from ..unlearnable.filters import check_filter_options, check_protection_size, draw_filter

_DENSE_KEYS = ('gt_bboxes', 'gt_masks', 'gt_seg_map', 'instances', 'seg_map_path')


@TRANSFORMS.register_module()
class ConvUnlearnable(BaseTransform):
    """Filter training images with a random filter of their class, drawn from a secret key.

    A model trained on such images learns which filter goes with which label and does badly on
    clean images (Sadasivan et al., "CUDA: Convolution-based Unlearnable Datasets", CVPR 2023; the
    name has nothing to do with NVIDIA's CUDA). In re-ID, identities are the classes: ``gt_label``
    counts the sorted identities.

    This transform protects images as they are read, for experiments;
    ``tools/dataset_converters/make_unlearnable.py`` writes a protected dataset. It belongs behind
    loading and resizing to the stored size, before random crops and flips. An image's filter and
    whether it is filtered follow from its label and its ``sample_idx`` alone, so they are the same
    in all epochs, workers and processes.

    The key comes from a file or an environment variable and is part of no config, log or
    checkpoint.

    **Required Keys:** ``img`` (uint8), ``gt_label``; ``sample_idx`` (MMEngine's datasets set it) if
    ``poison_fraction`` is below 1

    **Modified Keys:** ``img``

    Args:
        num_classes: Number of classes or identities of the training set.
        kernel_size: Odd side of the filters, at least 3: 3 for images of 32 pixels, 9 for those of
            224 in the paper.
        blur_parameter: Upper end of the uniform cells: 0.3 with 3, 0.06 with 9 in the paper.
        center: Value of one random cell; None leaves it out.
        poison_fraction: Fraction of the images to filter, 0..1.
        grayscale: Replace the channels of filtered images by their mean.
        same_filter: Use one filter for all classes, as a control.
        class_shift: Use the filter of the class that is so many places further (in a circle), as a
            control: what a model makes of test images with wrong filters.
        key_file: File that holds the key; see :class:`~vitdown.datasets.unlearnable.Key`.
        key_variable: Environment variable that holds it, ``VITDOWN_UNLEARNABLE_KEY`` by default.
        label_key: The sample's key that holds its class.

    Raises:
        KeyUnavailableError: There is no usable key.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        kernel_size: int = 3,
        blur_parameter: float | None = 0.3,
        center: float | None = 1.0,
        poison_fraction: float = 1.0,
        grayscale: bool = False,
        same_filter: bool = False,
        class_shift: int = 0,
        key_file: str | None = None,
        key_variable: str | None = None,
        label_key: str = 'gt_label',
    ) -> None:
        if _integer(class_shift) is None:
            raise ValueError(f'class_shift must be an integer, got {class_shift!r}.')
        for name, value in (('grayscale', grayscale), ('same_filter', same_filter)):
            if not isinstance(value, bool):
                raise ValueError(f'{name} must be True or False, got {value!r}.')
        check_protection_size(kernel_size)
        self._seed = read_key(key_file, key_variable).seed
        filters = class_filters(
            self._seed, num_classes, kernel_size, blur_parameter, center, same_filter
        )
        self._filters = np.roll(filters, -class_shift, axis=0)
        self.num_classes = num_classes
        self.kernel_size = kernel_size
        self.blur_parameter = blur_parameter
        self.center = center
        self.poison_fraction = poison_fraction
        self.grayscale = grayscale
        self.same_filter = same_filter
        self.class_shift = class_shift
        self.label_key = label_key
        self._mask = self._draw_mask(0)

    def transform(self, results: dict) -> dict:
        """Filter ``results['img']``.

        Raises:
            ValueError: The label is missing or outside 0..K-1, the image is missing or not uint8,
                or the sample is one of detection or segmentation.
        """
        label = self._label(results)
        _check_pixels(self, results)
        if self.poison_fraction == 1 or self._is_chosen(results):
            results['img'] = convolve_image(results['img'], self._filters[label], self.grayscale)
        return results

    def _label(self, results: dict) -> int:
        dense = [key for key in _DENSE_KEYS if key in results]
        if dense:
            raise ValueError(
                f'ConvUnlearnable: {_name(results)} has {dense[0]!r}: filters belong to image '
                'classes or identities; detection and segmentation have none for a whole image.'
            )
        if self.label_key not in results:
            raise ValueError(
                f'ConvUnlearnable: {_name(results)} has no {self.label_key!r}. Only labelled '
                'training samples can be filtered; take the transform out of test pipelines, or '
                'set label_key.'
            )
        label = _integer(results[self.label_key])
        if label is None or not 0 <= label < self.num_classes:
            raise ValueError(
                f'ConvUnlearnable: {_name(results)}: {self.label_key} must be one class of '
                f'0..{self.num_classes - 1}, got {results[self.label_key]!r}. Set num_classes to '
                'the number of classes or identities of the training set.'
            )
        return label

    def _is_chosen(self, results: dict) -> bool:
        index = _integer(results.get('sample_idx'))
        if index is None or index < 0:
            raise ValueError(
                f'ConvUnlearnable: {_name(results)} has no sample_idx of 0 or more, which decides '
                'about the image when poison_fraction is below 1, but '
                f'{results.get("sample_idx")!r}. Use a dataset of MMEngine, or set it.'
            )
        if index >= len(self._mask):
            self._mask = self._draw_mask(2 * index + 2)
        return bool(self._mask[index])

    def _draw_mask(self, number: int) -> np.ndarray:
        return poison_mask(
            self._seed, self.num_classes, self.kernel_size, number, self.poison_fraction,
            self.center,
        )  # fmt: skip

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(num_classes={self.num_classes}, '
            f'kernel_size={self.kernel_size}, blur_parameter={self.blur_parameter}, '
            f'center={self.center}, poison_fraction={self.poison_fraction}, '
            f'grayscale={self.grayscale}, same_filter={self.same_filter}, '
            f'class_shift={self.class_shift}, label_key={self.label_key!r})'
        )


def check_key_arguments(config: Any) -> None:
    """Refuse arguments that :class:`ConvUnlearnable` lacks: one of them may be the key itself.

    To be called before a config is written anywhere; messages have no values. An entry ``key`` of
    what the transform is part of, such as its data loader, is refused, too.

    Args:
        config: A config or a part of it, as dicts and lists.

    Raises:
        KeyUnavailableError: There is such an argument.
    """
    known = list(inspect.signature(ConvUnlearnable).parameters)
    for transform, owners in _conv_unlearnables(config):
        unknown = sorted(map(str, transform.keys() - {*known, 'type', '_scope_'}))
        if not unknown and any('key' in owner for owner in owners):
            unknown = ['key, nor has what it is part of']
        if unknown:
            raise KeyUnavailableError(
                f'ConvUnlearnable has no argument {", ".join(unknown)}; it has {", ".join(known)}. '
                'The key, or a seed as seed:0, stands in no config: put it into the environment '
                f'variable {KEY_VARIABLE}, or into a file that key_file names.'
            )


def check_key_sources(config: Any) -> None:
    """Read the keys of all files and variables that a config names for :class:`ConvUnlearnable`.

    To be called before the config is written anywhere: what is no such file or variable may be the
    key itself.

    Args:
        config: A config or a part of it, as dicts and lists.

    Raises:
        KeyUnavailableError: See :func:`check_key_arguments` and
            :func:`~vitdown.datasets.unlearnable.read_key`.
    """
    check_key_arguments(config)
    for transform, _ in _conv_unlearnables(config):
        source = {name: transform.get(name) for name in ('key_file', 'key_variable')}
        if any(value is not None for value in source.values()):
            try:
                read_key(**source)
            except KeyUnavailableError as error:
                raise KeyUnavailableError(
                    f'{error} To do without the key, as in tests of a trained model, set '
                    f'{" or ".join(n for n in source if source[n] is not None)} to None wherever '
                    'the config has it (--cfg-options).'
                ) from None


def _conv_unlearnables(
    config: Any, owners: tuple[Mapping, ...] = ()
) -> Iterator[tuple[Mapping, tuple[Mapping, ...]]]:
    """The parts of a config that configure the transform, however its type is spelt.

    Each with the dicts that it is part of.
    """
    if isinstance(config, Mapping):
        kind = config.get('type')
        name = str(getattr(kind, '__name__', kind)).split('.')[-1]
        if name.lower() == ConvUnlearnable.__name__.lower():
            yield config, owners
        owners += (config,)
        config = config.values()
    elif not isinstance(config, (list, tuple)):
        return
    for part in config:
        yield from _conv_unlearnables(part, owners)


def _name(results: dict) -> str:
    return str(results.get('img_path') or f'sample {results.get("sample_idx", "without a name")}')


def _integer(value: Any) -> int | None:
    """A Python, NumPy or PyTorch integer as an int; None for anything else."""
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return None


def _check_pixels(transform: BaseTransform, results: dict) -> None:
    img = results.get('img')
    if not isinstance(img, np.ndarray):
        raise ValueError(
            f'{type(transform).__name__}: {_name(results)} has no array img; put it behind the '
            'transform that loads images.'
        )
    if img.dtype != np.uint8 or img.ndim not in (2, 3):
        raise ValueError(
            f'{type(transform).__name__}: {_name(results)}: pixels are {img.dtype} of shape '
            f'{img.shape}, expected uint8 of (H, W) or (H, W, C). Put it before transforms that '
            'convert or normalise.'
        )


@TRANSFORMS.register_module()
class RandomConvBlur(BaseTransform):
    """Filter every image with a fresh random filter: an augmentation against class-wise filters.

    The filters are drawn as those of :class:`ConvUnlearnable` are, from NumPy's global generator,
    whatever the class. Paper: blur of 0.1 or 0.3 with filters of 3 x 3.

    **Required Keys:** ``img`` (uint8)

    **Modified Keys:** ``img``

    Args:
        kernel_size: Odd side of the filters.
        blur_parameter: Upper end of the uniform cells.
        prob: Probability that an image is filtered.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self, kernel_size: int = 3, blur_parameter: float = 0.3, prob: float = 1.0
    ) -> None:
        check_filter_options(kernel_size, blur_parameter)
        if not 0 <= prob <= 1:
            raise ValueError(f'prob must be 0 to 1, got {prob}.')
        self.kernel_size = kernel_size
        self.blur_parameter = blur_parameter
        self.prob = prob

    @cache_randomness
    def random_filter(self) -> np.ndarray | None:
        """Draw a filter ``(k, k)``, or None for leaving the image as it is."""
        if np.random.rand() >= self.prob:
            return None
        return draw_filter(np.random, self.kernel_size, self.blur_parameter)

    def transform(self, results: dict) -> dict:
        """Filter ``results['img']``.

        Raises:
            ValueError: The image is missing or not uint8.
        """
        _check_pixels(self, results)
        filt = self.random_filter()
        if filt is not None:
            results['img'] = convolve_image(results['img'], filt)
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(kernel_size={self.kernel_size}, '
            f'blur_parameter={self.blur_parameter}, prob={self.prob})'
        )
