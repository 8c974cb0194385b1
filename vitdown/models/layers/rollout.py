"""Attention rollout and the choice of patches by it.

Abnar & Zuidema, "Quantifying Attention Flow in Transformers" (arXiv 2005.00928), as DCAL uses it
(arXiv 2205.02151, Sec. 3.2): heads are averaged, the residual counts one half, later layers
multiply from the left. Nothing here passes gradients.
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Attention: TypeAlias = Tensor | tuple[Tensor, Tensor]


@torch.no_grad()
def attention_rollout(attns: Sequence[Attention], residual: float = 0.5) -> Tensor:
    """Product of all layers' attention, each mixed with the residual path.

    Args:
        attns (Sequence): Softmax attention of each layer, first layer first: ``(B, H, T, T)``,
            ``(B, T, T)`` where heads are averaged already, or its factors, a pair of scaled
            queries and keys ``(B, H, T, d)``.
        residual (float): Share of the identity. Defaults to 0.5.

    Returns:
        Tensor: ``(B, T, T)`` float32 (float64 for such input); rows sum to 1.
    """
    rollout = None
    with _full_precision(attns):
        for attn in attns:
            attn = _head_mean(attn)
            identity = torch.eye(attn.shape[-1], dtype=attn.dtype, device=attn.device)
            step = (1 - residual) * attn + residual * identity
            rollout = step if rollout is None else step @ rollout
    return rollout


@torch.no_grad()
def attention_rollout_cls(attns: Sequence[Attention], residual: float = 0.5) -> Tensor:
    """Class-token row of :func:`attention_rollout`, in O(L T^2) instead of O(L T^3).

    The row goes through the layers from the last, of which only the class token's attention counts,
    to the first. With factors as input only one head's attention ``(B, T, T)`` exists at a time.

    Args:
        attns (Sequence): See :func:`attention_rollout`.
        residual (float): Share of the identity. Defaults to 0.5.

    Returns:
        Tensor: ``(B, T)``; sums to 1.
    """
    with _full_precision(attns):
        *earlier, last = attns
        row = (1 - residual) * _head_mean(_of_class_token(last))
        row[..., 0] += residual
        for attn in reversed(earlier):
            row = (1 - residual) * _head_mean(attn, row) + residual * row
    return row[:, 0]


def _full_precision(attns: Sequence[Attention]) -> torch.autocast:
    """No autocast: products over many layers in half precision would change the ranking."""
    if not len(attns):
        raise ValueError('Attention rollout needs the attention of at least one layer')
    first = attns[0][0] if isinstance(attns[0], tuple) else attns[0]
    return torch.autocast(first.device.type, enabled=False)


def _of_class_token(attn: Attention) -> Attention:
    if isinstance(attn, tuple):
        query, key = attn
        return query[..., :1, :], key
    return attn[..., :1, :]


def _head_mean(attn: Attention, row: Tensor | None = None) -> Tensor:
    """Mean over the heads of their attention ``(B, N, T)``, or of ``row @ attention``."""
    total, num_heads = None, 0
    for head in _heads(attn):
        part = head if row is None else row @ head
        total = part if total is None else total + part
        num_heads += 1
    assert total is not None  # no attention is without heads
    return total / num_heads


def _heads(attn: Attention) -> Iterator[Tensor]:
    """Attention ``(B, N, T)`` of one head after the other."""
    if isinstance(attn, tuple):
        for factors in zip(*(part.unbind(dim=1) for part in attn)):
            query, key = map(_at_least_float32, factors)
            yield (query @ key.transpose(-2, -1)).softmax(dim=-1)
    else:
        yield from map(_at_least_float32, attn.unbind(dim=1) if attn.ndim == 4 else [attn])


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def select_top_r(scores: Tensor, ratio: float) -> Tensor:
    """Indices of the ``R = max(1, floor(ratio * N))`` highest scores of each row, descending.

    Of equal scores the lower index comes first, on every device.

    Args:
        scores (Tensor): ``(B, N)``, one score a patch.
        ratio (float): Share of the patches, in (0, 1].

    Returns:
        Tensor: ``(B, R)`` int64.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f'ratio must be in (0, 1], got {ratio}')
    num_local = max(1, int(ratio * scores.shape[-1] + 1e-6))
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :num_local]
