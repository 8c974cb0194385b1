"""Quantizers of OFQ as pure functions, with their gradients.

"Oscillation-free Quantization for Low-bit Vision Transformers" (arXiv 2302.02210). Everything is
computed in float32 at least, rounds half to even and never waits for the device. A level is the
distance between two neighbouring codes.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Just below the upper clip, so that the highest code is n - 1.
_CLIP_MARGIN = 1e-6
MIN_STEP = 1e-5


def check_width(bits: int, name: str = 'bits') -> int:
    """A bit-width of 2 to 8.

    Raises:
        ValueError: For other widths.
    """
    if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 8:
        raise ValueError(
            f'{name} must be 2 to 8, or None (or 16 and more) for full precision, got {bits!r}'
        )
    return bits


def check_bits(bits: int | None, name: str = 'bits') -> int | None:
    """A bit-width of 2 to 8, or None for one that leaves values as they are (None, 16 and more).

    Raises:
        ValueError: For other widths.
    """
    if bits is None or (isinstance(bits, int) and bits >= 16):
        return None
    return check_width(bits, name)


def full_precision(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


def statsq_scale(weight: Tensor) -> Tensor:
    """Row scale of StatsQ, ``2 * mean(|W|)``: ``(O, 1, ...)`` for ``(O, ...)``, without gradient.

    A row of zeros gets the smallest positive scale instead of 0.
    """
    weight = full_precision(weight.detach())
    scale = 2 * weight.abs().flatten(1).mean(dim=1)
    scale = scale.clamp_(min=torch.finfo(weight.dtype).tiny)
    return scale.reshape(-1, *[1] * (weight.ndim - 1))


def statsq_position(weight: Tensor, bits: int) -> Tensor:
    """Where weights lie between the codes: code ``z`` covers ``[z - 0.5, z + 0.5]``.

    Returns:
        Tensor: ``clamp(W / s, -1, 1) * n - 0.5`` with ``n = 2 ** (bits - 1)``.
    """
    weight = full_precision(weight.detach())
    half = 2 ** (bits - 1)
    return (weight / statsq_scale(weight)).clamp_(-1, 1 - _CLIP_MARGIN).mul_(half).sub_(0.5)


def statsq_codes(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Integer codes of StatsQ.

    Args:
        weight (Tensor): ``(O, ...)``, one scale a row.
        bits (int): 2 to 8.

    Returns:
        tuple: Codes int8 in ``[-n, n - 1]`` with ``n = 2 ** (bits - 1)``, of the shape of
        ``weight``, and the scale ``(O, 1, ...)``. The quantized weight is
        ``scale * (codes + 0.5) / n``.
    """
    half = 2 ** (bits - 1)
    codes = statsq_position(weight, bits).round_().clamp_(-half, half - 1)
    return codes.to(torch.int8), statsq_scale(weight)


class _StatsQ(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: int, boundary_range: float | None) -> Tensor:
        ctx.free = None
        if boundary_range is not None:
            ctx.free = cga_free_mask(weight, bits, boundary_range)
        scale = statsq_scale(weight)
        half = 2 ** (bits - 1)
        codes = (full_precision(weight) / scale).clamp_(-1, 1 - _CLIP_MARGIN)
        codes = codes.mul_(half).sub_(0.5).round_().clamp_(-half, half - 1)
        return codes.add_(0.5).mul_(scale / half)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return (grad if ctx.free is None else grad * ctx.free), None, None


def statsq(weight: Tensor, bits: int, boundary_range: float | None = None) -> Tensor:
    """Quantize weights by the statistics of their rows (Sec. 4.1): no learnt scale.

    The grid is symmetric and has no zero. The gradient passes as it is, also for clipped weights.

    Args:
        weight (Tensor): ``(O, ...)``.
        bits (int): 2 to 8.
        boundary_range (float, optional): If given, the gradient reaches only weights that
            :func:`cga_free_mask` calls free.

    Returns:
        Tensor: Quantized weight, float32.
    """
    return _StatsQ.apply(weight, bits, boundary_range)


def threshold_distance(position: Tensor, bits: int) -> Tensor:
    """Distance to the nearest threshold in levels; infinite beyond the outer thresholds' reach.

    Args:
        position (Tensor): See :func:`statsq_position`.
        bits (int): 2 to 8. Thresholds lie at ``i + 0.5`` for ``i = -n ... n - 2``.
    """
    half = 2 ** (bits - 1)
    shifted = position - 0.5
    nearest = shifted.round()
    inside = (nearest >= -half) & (nearest <= half - 2)
    return torch.where(inside, (shifted - nearest).abs(), torch.inf)


def cga_free_mask(weight: Tensor, bits: int, boundary_range: float) -> Tensor:
    """Weights that confidence-guided annealing still trains (Sec. 4.3): those near a threshold.

    Args:
        weight (Tensor): ``(O, ...)``.
        bits (int): 2 to 8.
        boundary_range (float): Half-width of the band around a threshold, in levels.

    Returns:
        Tensor: Bool, of the shape of ``weight``.
    """
    position = statsq_position(weight, bits)
    half = 2 ** (bits - 1)
    below = (position - 0.5).round()
    # The comparison of the official code, whose rounding decides at the rim of the band.
    distance = position - below
    free = (distance <= 0.5 + boundary_range) & (distance >= 0.5 - boundary_range)
    return free & (below >= -half) & (below <= half - 2)


def lsq_bounds(bits: int, signed: bool = True) -> tuple[int, int]:
    """Lowest and highest code."""
    if signed:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def lsq_codes(x: Tensor, step: Tensor, qn: int, qp: int) -> Tensor:
    """Integer codes of LSQ as floats: ``round(clamp(x / step, qn, qp))``."""
    # A true division: multiplying by the reciprocal can move a code.
    codes = full_precision(x) / step.clamp(min=MIN_STEP)
    return codes.clamp_(qn, qp).round_()


def lsq_initial_step(
    x: Tensor, step_shape: tuple[int, ...], qp: int, factor: float = 2.0
) -> Tensor:
    """First step: ``factor * mean(|x|) / sqrt(qp)`` over the elements that share it.

    Args:
        x (Tensor): Input of the quantizer.
        step_shape (tuple[int, ...]): Shape of the step, which broadcasts against ``x``.
        qp (int): Highest code.
        factor (float): 2, or 4 for unsigned inputs.
    """
    x = full_precision(x.detach()).abs()
    shared = x.numel() // math.prod(step_shape)
    return factor * x.sum_to_size(step_shape) / (shared * math.sqrt(qp))


def _next_float32(value: int, towards: float) -> float:
    """The float32 beside an integer."""
    return float(np.nextafter(np.float32(value), np.float32(towards)))


class _LSQ(torch.autograd.Function):
    """``clamp -> round`` with both shifts in one node, which keeps one float per element."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        qn: int,
        qp: int,
        before: Tensor | None,
        after: Tensor | None,
    ) -> Tensor:
        step = step.clamp(min=MIN_STEP)
        scaled = x / step if before is None else (x + before).div_(step)
        ctx.save_for_backward(scaled, step)
        ctx.bounds = qn, qp
        ctx.shifts = [None if shift is None else shift.shape for shift in (before, after)]
        codes = scaled.clamp(qn, qp).round_()
        return codes.mul_(step) if after is None else torch.addcmul(after, codes, step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled, step = ctx.saved_tensors
        qn, qp = ctx.bounds
        before, after = ctx.shifts
        # Zero outside the bounds, which belong to the inside: one pass instead of a mask
        low, high = _next_float32(qn, -math.inf), _next_float32(qp, math.inf)
        grad_x = torch.ops.aten.hardtanh_backward(grad, scaled, low, high)
        # round(v) - v inside, the bound outside
        slope = scaled.clamp(qn, qp).round_().mul_(grad).addcmul_(grad_x, scaled, value=-1)
        grad_step = slope.sum_to_size(step.shape)
        grad_step = grad_step / math.sqrt(qp * (grad.numel() // step.numel()))
        grad_before = None if before is None else grad_x.sum_to_size(before)
        grad_after = None if after is None else grad.sum_to_size(after)
        return grad_x, grad_step, None, None, grad_before, grad_after


def lsq(
    x: Tensor,
    step: Tensor,
    qn: int,
    qp: int,
    before: Tensor | None = None,
    after: Tensor | None = None,
) -> Tensor:
    """Quantize with a learnt step (LSQ, arXiv 1902.08153) between two learnt shifts.

    ``round(clamp((x + before) / step, qn, qp)) * step + after``. Steps below 1e-5 count as 1e-5.
    The gradient reaches ``x`` within the bounds, which belong to it. That of the step is divided
    by ``sqrt(qp * M)``, where M elements share a step.

    Args:
        x (Tensor): Input.
        step (Tensor): Broadcasts against ``x``.
        qn (int): Lowest code.
        qp (int): Highest code.
        before (Tensor, optional): Broadcasts against ``x``.
        after (Tensor, optional): Broadcasts against ``x``.

    Returns:
        Tensor: Float32, of the shape of ``x``.
    """
    shifts = [None if shift is None else full_precision(shift) for shift in (before, after)]
    return _LSQ.apply(full_precision(x), full_precision(step), qn, qp, *shifts)
