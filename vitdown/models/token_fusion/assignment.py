"""Who is fused with whom, and what follows from it for tokens, sizes and attention.

Everything is a segment reduction by one map of positions; a token that is fused with no other one
passes through unchanged, bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .streams import Streams


@dataclass(frozen=True)
class Assignment:
    """Output slot of every token.

    Attributes:
        slots (Tensor): ``(B, N)`` int64 in ``0 .. num_slots - 1``; every slot is taken.
        num_slots (int): Number N' of tokens after fusing, the same for all images.
    """

    slots: Tensor
    num_slots: int

    def spread(self, x: Tensor) -> Tensor:
        """Give every input token what its slot has: ``(B, N', ...)`` to ``(B, N, ...)``."""
        return gather_tokens(x, self.slots)

    def sum(self, x: Tensor) -> Tensor:
        """Add up what the tokens of each slot have: ``(B, N, ...)`` to ``(B, N', ...)``."""
        batch, num_tokens = self.slots.shape
        flat = x.reshape(batch * num_tokens, -1)
        # An index that is expanded along the rows of a flat tensor takes PyTorch's fast path.
        rows = (self.slots + _row_offsets(self.slots, self.num_slots)).reshape(-1, 1)
        out = flat.new_zeros(batch * self.num_slots, flat.shape[1])
        out = out.scatter_add(0, rows.expand_as(flat), flat)
        return out.view(batch, self.num_slots, *x.shape[2:])

    def max(self, x: Tensor) -> Tensor:
        """Element-wise maximum over the tokens of each slot; shapes as in :meth:`sum`."""
        index = self.slots.view(*self.slots.shape, *[1] * (x.ndim - 2)).expand_as(x)
        out = x.new_full((x.shape[0], self.num_slots, *x.shape[2:]), float('-inf'))
        return out.scatter_reduce(1, index, x, 'amax')

    def shares(self, weights: Tensor) -> Tensor:
        """Weights ``(B, N)`` divided by their sum over each slot; exactly 1 for a lone token."""
        return weights / self.spread(self.sum(weights))


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Tokens ``(B, M, ...)`` at the places ``index`` ``(B, N)``: ``(B, N, ...)``."""
    rows = index + _row_offsets(index, x.shape[1])
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(*index.shape, *x.shape[2:])


def _row_offsets(index: Tensor, num_rows: int) -> Tensor:
    return torch.arange(index.shape[0], device=index.device)[:, None] * num_rows


def fuse_tokens(x: Tensor, assignment: Assignment, shares: Tensor | None) -> Tensor:
    """Fused tokens: a convex combination of the tokens of each slot, or their maximum.

    Args:
        x (Tensor): Tokens ``(B, N, ...)``.
        assignment (Assignment): Who goes where.
        shares (Tensor, optional): ``(B, N)`` from :meth:`Assignment.shares`, through which no
            gradient passes; None for the element-wise maximum.

    Returns:
        Tensor: ``(B, N', ...)``.
    """
    if shares is None:
        return assignment.max(x)
    shares = shares.detach().to(x.dtype)
    return assignment.sum(x * shares.view(*shares.shape, *[1] * (x.ndim - 2)))


def fuse_attention(attn: Tensor, assignment: Assignment, shares: Tensor | None) -> Tensor:
    """Attention between fused tokens: keys are added up, queries pooled like the tokens.

    MCTF's approximation of the attention after fusing (arXiv 2403.10030, Sec. 3.3). This is what
    the official code computes; :func:`attend_fused` gives the same output without such a map.

    Args:
        attn (Tensor): Softmax attention ``(B, H, N, N)`` before fusing.
        assignment (Assignment): Who goes where.
        shares (Tensor, optional): See :func:`fuse_tokens`.

    Returns:
        Tensor: ``(B, H, N', N')``. Rows sum to 1, except those of a maximum.
    """
    keys = assignment.sum(attn.permute(0, 3, 1, 2))
    return fuse_tokens(keys.permute(0, 3, 2, 1), assignment, shares).transpose(1, 2)


def attend_fused(
    attns: Sequence[Tensor],
    value: Tensor,
    assignment: Assignment,
    shares: Tensor,
    streams: Streams | None = None,
) -> Tensor:
    """``fuse_attention(attn, ...) @ value`` without fusing the attention map.

    With the assignment matrix P and the averaging matrix W that map is ``W attn P^T``: values are
    spread to the tokens before fusing, mixed by the attention that is there already, and the
    result is averaged like the tokens.

    Args:
        attns (Sequence[Tensor]): Softmax attention ``(B, H, N, N)`` before fusing, of each stream.
        value (Tensor): Values of the fused tokens, ``(B, H, N', d)``.
        assignment (Assignment): Who goes where.
        shares (Tensor): See :func:`fuse_tokens`.
        streams (Streams): Which values each stream meets. Defaults to one stream.

    Returns:
        Tensor: ``(B, N', H * d)``.
    """
    value = assignment.spread(value.transpose(1, 2)).transpose(1, 2)
    streams = streams or Streams()
    mixed = streams.join([attn @ v for attn, v in zip(attns, streams.keys(value, 2))])
    return fuse_tokens(mixed.transpose(1, 2).flatten(2), assignment, shares)
