"""Projected gradient descent (Madry et al., ICLR 2018)."""

from collections.abc import Callable

import torch
from torch import Tensor


def pgd_attack(
    loss: Callable[[Tensor], Tensor],
    images: Tensor,
    eps: float,
    norm: str = 'linf',
    steps: int = 10,
    alpha: float | None = None,
    random_start: bool = True,
) -> Tensor:
    """Images near the given ones that raise the loss.

    Args:
        loss: From images ``(N, C, H, W)`` to a scalar, the mean over the images.
        images: ``(N, C, H, W)`` with values in 0..1.
        eps: Largest distance from the images, in units of the values.
        norm: ``'linf'``, steps by the sign of the gradient, or ``'l2'``, steps along it, where the
            distance is that of whole images.
        steps: Number of steps.
        alpha: Length of a step; ``1.5 * eps / steps`` by default.
        random_start: Start at a uniformly drawn point of the box (``'linf'``). With ``'l2'`` the
            attack always starts at the image, like the reference (torchattacks 3.2.6).

    Returns:
        ``(N, C, H, W)``, detached, values in 0..1.

    Raises:
        ValueError: Unknown norm, ``eps`` or ``steps`` below zero.
    """
    if norm not in ('linf', 'l2'):
        raise ValueError(f"norm must be 'linf' or 'l2', got {norm!r}.")
    if eps < 0 or steps < 0:
        raise ValueError(f'eps and steps must not be negative, got {eps} and {steps}.')
    images = images.detach()
    adversarial = images
    if norm == 'linf' and random_start:
        adversarial = (images + torch.empty_like(images).uniform_(-eps, eps)).clamp(0, 1)
    if alpha is None:
        alpha = 1.5 * eps / max(steps, 1)
    for _ in range(steps):
        adversarial = adversarial.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(adversarial), adversarial)
        with torch.no_grad():
            if norm == 'linf':
                moved = adversarial + alpha * gradient.sign()
                delta = (moved - images).clamp(-eps, eps)
            else:
                delta = adversarial + alpha * gradient / (_length(gradient) + 1e-10) - images
                # An image that did not move has no direction to shorten.
                delta = delta * (eps / _length(delta).clamp_min(1e-30)).clamp(max=1)
            adversarial = (images + delta).clamp(0, 1)
    return adversarial.detach()


def _length(batch: Tensor) -> Tensor:
    """L2 norm of every image, ``(N, 1, 1, 1)``."""
    return batch.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
