"""Filtering of images: one at a time with the same bytes everywhere, or quickly in batches."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg.blas import daxpy
from torch import Tensor

# Filter cells are rounded to multiples of 2**-26, of less where their sum is below 1, or of the
# power of two that keeps their sum below 2**35 such units. Sums of cells times grey levels, of up
# to four channels, times 255 are then integers that float64 holds exactly: no order of summation,
# no fused instruction changes a result.
_FRACTION_BITS = 26
_SUM_BITS = 35

# Numbers filtered by one call: what a core's cache holds, or what keeps a GPU busy. CPUs filter 16
# channels at a time, and reorder numbers that are no multiple of it.
_CPU_CHUNK = 2**18
_GPU_CHUNK = 2**26
_CPU_CHANNELS = 16


def correlate(img: np.ndarray, filt: np.ndarray) -> np.ndarray:
    """Cross-correlation of every channel with one filter: zero padding, same size, no flip.

    Args:
        img: ``(H, W)`` or ``(H, W, C)`` uint8.
        filt: ``(k, k)``, k odd.

    Returns:
        float64 of the image's shape, in grey levels. Exact for the filter rounded to float32 and
        to multiples of 2**-26, of 2**-35 of the next power of two above the sum of its cells where
        that is more, or of 2**-26 of that power of two where that is less.

    Raises:
        ValueError: The image is not uint8, has another number of dimensions or no pixels; the
            filter is not square and odd, or its cells are not finite in float32.
    """
    if img.dtype != np.uint8 or img.ndim not in (2, 3):
        raise ValueError(
            f'Images to filter must be (H, W) or (H, W, C) uint8, got {img.dtype} of shape '
            f'{img.shape}. Filter before images are converted or normalised.'
        )
    if not img.size:
        raise ValueError(f'An image of shape {img.shape} has no pixels to filter.')
    size = filt.shape[0]
    if filt.shape != (size, size) or size % 2 == 0:
        raise ValueError(f'A filter must be (k, k) with odd k, got shape {filt.shape}.')
    with np.errstate(over='ignore'):
        cells = filt.astype(np.float32).astype(np.float64)
    if not np.isfinite(cells).all():
        raise ValueError('The cells of a filter must be finite in float32.')
    exponent = np.frexp(np.abs(cells).sum())[1]
    scale = 2.0 ** min(_FRACTION_BITS - min(exponent, 0), _SUM_BITS - exponent)
    cells = np.rint(cells * scale)
    height, width = img.shape[:2]
    channels = int(np.prod(img.shape[2:]))
    # Rows share their padding, so a shift of the filter is a shift of the flattened image.
    margin, row = size // 2, (width + size // 2) * channels
    flat = np.zeros((height + 2 * margin) * row + 2 * margin * channels)
    start = margin * row + margin * channels
    inner = flat[start : start + height * row].reshape(height, row)
    inner[:, : width * channels] = img.reshape(height, -1)
    sums = np.zeros(height * row)
    for y in range(size):
        for x in range(size):
            shift = y * row + x * channels
            sums = daxpy(flat[shift : shift + sums.size], sums, a=cells[y, x])
    sums /= scale
    return sums.reshape(height, row)[:, : width * channels].reshape(img.shape)


def convolve_image(img: np.ndarray, filt: np.ndarray, grayscale: bool = False) -> np.ndarray:
    """Filter one image and rescale it to the full range, with the same bytes on every machine.

    Args:
        img: ``(H, W)`` or ``(H, W, C)`` uint8, channels in any order.
        filt: ``(k, k)`` filter, e.g. one of :func:`class_filters`; used for all channels.
        grayscale: Replace the channels by their mean.

    Returns:
        uint8 of the image's shape, largest value 255. An image that the filter leaves nothing of,
        such as a black one, comes back as it is.

    Raises:
        ValueError: See :func:`correlate`.
    """
    sums = correlate(img, filt)
    if grayscale and img.ndim == 3:
        sums = np.repeat(sums.sum(axis=2, keepdims=True), img.shape[2], axis=2)
    peak = sums.max()
    if peak <= 0:
        return img.copy()
    # Truncation toward zero, as in the paper's code. With cells above zero nothing is negative.
    return np.clip(sums * 255 / peak, 0, 255).astype(np.uint8)


@torch.no_grad()
def convolve_batch(
    images: Tensor | np.ndarray,
    filters: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    grayscale: bool = False,
) -> Tensor | np.ndarray:
    """Filter a batch, each image with the filter of its class, by grouped convolutions.

    In float32, like the paper's code, whose bytes it gives up to one level in fewer than 1e-4 of
    the values; :func:`convolve_image` is the one that gives the same bytes everywhere. No
    gradients.

    Args:
        images: ``(N, C, H, W)``, uint8, or floating point in 0..1.
        filters: ``(K, k, k)``, k odd.
        labels: ``(N,)`` integers below K.
        grayscale: Replace the channels by their mean.

    Returns:
        Array or tensor of the images' shape, data type and device; the largest value of every image
        is 255 (uint8, truncated) or 1. Images that the filter leaves nothing of, such as black
        ones, come back as they are.

    Raises:
        ValueError: Shapes or data types don't fit, a label is outside 0..K-1, a floating point
            pixel outside 0..1, or a filter has cells that are not finite in float32.
    """
    if isinstance(images, np.ndarray):
        return convolve_batch(_as_tensor(images), filters, labels, grayscale).numpy()
    filters, labels = _as_tensor(filters), _as_tensor(labels).to(images.device)
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            f'images must be (N, C, H, W), uint8 or floating point, got {images.dtype} of shape '
            f'{tuple(images.shape)}.'
        )
    if filters.ndim != 3 or filters.shape[1] != filters.shape[2] or filters.shape[1] % 2 == 0:
        raise ValueError(f'filters must be (K, k, k) with odd k, got {tuple(filters.shape)}.')
    if labels.shape != images.shape[:1]:
        raise ValueError(f'{len(images)} images need as many labels, got {tuple(labels.shape)}.')
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f'labels must be integers, got {labels.dtype}.')
    if not images.numel():
        return images.clone()
    if int(labels.min()) < 0 or int(labels.max()) >= len(filters):
        raise ValueError(
            f'labels must be 0 to {len(filters) - 1}, one for each filter, got '
            f'{int(labels.min())} to {int(labels.max())}.'
        )
    if images.is_floating_point():
        low, high = images.aminmax()
        # Also false with NaN
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f'Floating point images must be 0..1, got {float(low):g} to {float(high):g}; '
                'divide grey levels by 255.'
            )
    filters = filters.to(images.device, torch.float32)
    if not filters.isfinite().all():
        raise ValueError('The cells of filters must be finite in float32.')
    # Powers of two change no bit of the result, and keep the sums of large cells finite.
    exponents = torch.frexp(filters.abs().amax(dim=(1, 2), keepdim=True)).exponent
    filters = torch.ldexp(filters, -exponents.clamp(-100, 100))
    top = 255 if images.dtype == torch.uint8 else 1
    step = _chunk_length(images)
    # TensorFloat-32 and mixed precision would cost the last bits of most values.
    with (
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        torch.autocast(images.device.type, enabled=False),
    ):
        out = torch.empty_like(images)
        for i in range(0, len(images), step):
            part = slice(i, i + step)
            out[part] = _convolve(images[part], filters[labels[part].long()], grayscale, top)
    return out


def _as_tensor(values: Tensor | np.ndarray) -> Tensor:
    # PyTorch takes no negative strides, which flipped arrays have.
    return torch.as_tensor(
        np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values
    )


def _chunk_length(images: Tensor) -> int:
    """Number of images to filter by one call."""
    size = images[0].numel()
    if images.device.type != 'cpu':
        return max(1, _GPU_CHUNK // size)
    fitting = _CPU_CHUNK // size
    if fitting >= _CPU_CHANNELS:
        return fitting - fitting % _CPU_CHANNELS
    return max(1, _CPU_CHANNELS // images.shape[1], fitting)


def _convolve(images: Tensor, filters: Tensor, grayscale: bool, top: int) -> Tensor:
    number, channels, height, width = images.shape
    planes = images.to(torch.float32).reshape(1, number * channels, height, width)
    weight = filters.repeat_interleave(channels, dim=0)[:, None]
    out = F.conv2d(planes, weight, padding=weight.shape[-1] // 2, groups=number * channels)
    out = out.view(images.shape)
    if grayscale:
        out = out.mean(dim=1, keepdim=True).expand(images.shape).contiguous()
    peak = out.amax(dim=(1, 2, 3), keepdim=True)
    lost = (peak <= 0).view(number)
    out.mul_(top / peak).clamp_(0, top)
    if lost.any():
        out[lost] = planes.view(images.shape)[lost]
    # By way of 16 bits, because PyTorch converts float32 to uint8 one number at a time.
    return out.to(torch.int16) if images.dtype == torch.uint8 else out
