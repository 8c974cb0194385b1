"""Deconvolution-based attack of the adaptive defence against class-wise filters (CVPR 2023)."""

from collections.abc import Callable
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LIMIT = 5.0


def deconvolution_attack(
    loss: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    kernel_size: int = 7,
    steps: int = 10,
    eta: float = 0.1,
    parameters: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Images after the transposed convolution of their class that raises the loss.

    Each class has one kernel for all channels and a bias, which climb the mean loss of the class'
    images (adaptive defence of Sadasivan et al., "CUDA: Convolution-based Unlearnable Datasets";
    nothing to do with NVIDIA's CUDA).

    Args:
        loss: From images ``(n, C, H, W)`` and the indices ``(n,)`` of these images in the batch to
            a scalar, the mean over the images.
        images: ``(N, C, H, W)``.
        labels: ``(N,)`` classes; those that the batch lacks cost nothing.
        kernel_size: Odd side of the kernels; 3, 5 or 7 in the paper.
        steps: Number of steps.
        eta: Factor of the gradient.
        parameters: Kernels ``(n, 1, 1, k, k)`` and biases ``(n, 1)`` to start from, for the n
            classes present in ascending order; drawn as PyTorch initialises layers by default.

    Returns:
        Images ``(N, C, H, W)``, each stretched to 0..1 (a constant one becomes 0); kernels
        and biases of the classes present after the last step.

    Raises:
        ValueError: ``kernel_size`` is no odd integer, or there is not one label an image.
    """
    if not isinstance(kernel_size, Integral) or kernel_size % 2 == 0:
        raise ValueError(f'kernel_size must be an odd integer, got {kernel_size!r}.')
    if labels.shape != images.shape[:1]:
        raise ValueError(f'{len(images)} images need as many labels, got {tuple(labels.shape)}.')
    images = images.detach()
    members = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    if parameters is None:
        layers = [nn.ConvTranspose2d(1, 1, kernel_size) for _ in members]
        parameters = (
            torch.stack([layer.weight.detach() for layer in layers]),
            torch.stack([layer.bias.detach() for layer in layers]),
        )
    kernels, biases = (part.detach().to(images) for part in parameters)
    for _ in range(steps):
        kernels, biases = kernels.clamp(-_LIMIT, _LIMIT), biases.clamp(-_LIMIT, _LIMIT)
        for i, index in enumerate(members):
            kernel, bias = kernels[i].clone().requires_grad_(), biases[i].clone().requires_grad_()
            with torch.enable_grad():
                value = loss(_deconvolve(images[index], kernel, bias), index)
                gradients = torch.autograd.grad(value, (kernel, bias))
            kernels[i] += eta * gradients[0]
            biases[i] += eta * gradients[1]
    out = torch.empty_like(images)
    for i, index in enumerate(members):
        out[index] = _deconvolve(images[index], kernels[i], biases[i])
    out -= out.amin(dim=(1, 2, 3), keepdim=True)
    peak = out.amax(dim=(1, 2, 3), keepdim=True)
    return out / torch.where(peak > 0, peak, 1), kernels, biases


def _deconvolve(images: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Transposed convolution, as the convolution with the turned kernel: ten times as fast."""
    planes = images.flatten(0, 1)[:, None]
    out = F.conv2d(planes, kernel.flip(-2, -1), bias, padding=kernel.shape[-1] // 2)
    return out.view(images.shape).to(images.dtype)
