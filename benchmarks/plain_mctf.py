"""MCTF step by step as its paper and official code do it, to measure and check the fast form by.

Tokens are split into even and odd ones and every tensor - tokens, sizes, sources, both sides of the
attention map - goes through gathers, scatter-reductions and a concatenation of its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitdown.models.token_fusion import MCTF
from vitdown.models.token_fusion.mctf import attention_received


@dataclass
class Decisions:
    """Who goes where, as indices within the sets of even (A) and odd (B) tokens.

    Attributes:
        kept_even (Tensor): ``(B, nA - r1)`` ascending.
        moved_even (Tensor): ``(B, r1)`` best first.
        partner_odd (Tensor): ``(B, r1)`` where they go, in B.
        kept_odd (Tensor, optional): ``(B, nB - r2)`` by descending score; None in one direction.
        moved_odd (Tensor, optional): ``(B, r2)`` best first.
        partner_even (Tensor, optional): ``(B, r2)`` where they go, as places in ``kept_even``.
    """

    kept_even: Tensor
    moved_even: Tensor
    partner_odd: Tensor
    kept_odd: Tensor | None = None
    moved_odd: Tensor | None = None
    partner_even: Tensor | None = None

    def merge(self, x: Tensor, mode: str = 'sum') -> Tensor:
        """Reduce tokens ``(B, ..., N, C)`` to ``(B, ..., N', C)`` by ``'sum'`` or ``'amax'``."""
        even, odd = x[..., ::2, :], x[..., 1::2, :]
        kept = _take(even, self.kept_even)
        odd = _scatter(odd, self.partner_odd, _take(even, self.moved_even), mode)
        if self.kept_odd is None:
            return torch.cat((kept, odd), dim=-2)
        kept = _scatter(kept, self.partner_even, _take(odd, self.moved_odd), mode)
        return torch.cat((kept, _take(odd, self.kept_odd)), dim=-2)


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(-2, _expand(index, x))


def _scatter(x: Tensor, index: Tensor, values: Tensor, mode: str) -> Tensor:
    return x.scatter_reduce(-2, _expand(index, x), values, mode)


def _expand(index: Tensor, x: Tensor) -> Tensor:
    """Index ``(B, n)`` of tokens for ``x`` ``(B, ..., N, C)``: ``(B, ..., n, C)``."""
    shape = (*x.shape[:-2], index.shape[1], x.shape[-1])
    return index.view(index.shape[0], *[1] * (x.ndim - 3), -1, 1).expand(shape)


def decide(scores: Tensor, r: int, bidirectional: bool, sort_kept: bool = True) -> Decisions:
    """Bipartite matching on scores ``(B, nA, nB)``, protected rows and columns -inf."""
    r_even = r // 2 if bidirectional else r
    likes, partner = scores.max(dim=2)
    order = likes.argsort(dim=1, descending=True, stable=True)
    moved, kept = order[:, :r_even], order[:, r_even:]
    if sort_kept:
        kept = kept.sort(dim=1).values
    first = Decisions(kept, moved, partner.gather(1, moved))
    if not bidirectional:
        return first
    likes, partner = _take(scores, kept).max(dim=1)
    order = likes.argsort(dim=1, descending=True, stable=True)
    moved, kept_odd = order[:, : r - r_even], order[:, r - r_even :]
    return Decisions(
        kept, first.moved_even, first.partner_odd, kept_odd, moved, partner.gather(1, moved)
    )


def full_scores(scores: Tensor, num_protected: int = 1) -> Tensor:
    """Scores of unprotected tokens with rows and columns of -inf for the protected ones."""
    top, left = (num_protected + 1) // 2, num_protected // 2
    return torch.nn.functional.pad(scores, (left, 0, top, 0), value=float('-inf'))


def plain_scores(
    x: Tensor,
    informativeness: Tensor,
    size: Tensor | None,
    tau_sim: float,
    tau_info: float,
    tau_size: float,
) -> Tensor:
    """Scores ``(B, nA, nB)`` with one protected token, every criterion a map of its own."""
    unit = x / x.norm(dim=-1, keepdim=True)
    scores = torch.ones(x.shape[0], (x.shape[1] + 1) // 2, x.shape[1] // 2, device=x.device)
    if tau_sim:
        scores = ((unit[:, ::2] @ unit[:, 1::2].transpose(1, 2) + 1) / 2) ** (1 / tau_sim)
    for criterion, tau in ((informativeness, tau_info), (size, tau_size)):
        if tau and criterion is not None:
            inverse = 1 / criterion
            inverse = inverse / inverse.amax(dim=1, keepdim=True)
            scores = scores * (inverse[:, ::2, None] * inverse[:, None, 1::2]) ** (1 / tau)
    scores[:, 0] = float('-inf')
    return scores


class PlainMCTF(MCTF):
    """:class:`MCTF` with ``attention='one_step_ahead'`` and one protected token, slowly.

    Args:
        *args: As for :class:`MCTF`.
        trace_source (bool): Whether to keep ``source``, which the official code does on request
            only: it fuses a map from tokens to patches like another attention map.
        **kwargs: As for :class:`MCTF`.
    """

    def __init__(self, *args, trace_source: bool = True, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.trace_source = trace_source

    @staticmethod
    def _softmax(attn, query, key, bias, streams):
        logits = (query @ key.transpose(-2, -1)) * attn.scale
        return [(logits if bias is None else logits + bias).softmax(dim=-1)]

    def _fuse_within(self, block, x, state, r, streams, need_weights):
        attn = block.attn
        sizes = state.sizes(x)
        query, key = attn.project_qk(block.ln1(x))
        (weights,) = self._softmax(attn, query, key, self.bias(x, state), streams)
        attention = self.report(attn, need_weights, query, key, (weights,), state, streams)
        with torch.no_grad():
            taus = (self.tau_sim, self.tau_info, self.tau_size)
            scores = plain_scores(x, attention_received(weights), state.size, *taus)
            decisions = decide(scores, r, self.bidirectional)
            share = (attention_received(weights) * sizes)[..., None]
            share = share / share.amax(dim=1, keepdim=True)
            total = decisions.merge(share)
            source = self._trace(x, state, decisions) if self.trace_source else None
        x = decisions.merge(x * share) / total
        keys = decisions.merge(weights[..., None])[..., 0]
        fused = decisions.merge(keys * share[:, None]) / total[:, None]
        out = (fused @ attn.project_v(block.ln1(x))).transpose(1, 2).flatten(2)
        size = decisions.merge(sizes[..., None])[..., 0]
        state = type(state)(size=size, source=source, r=state.r)
        return x + attn.project_out(out), state, attention

    @staticmethod
    def _trace(x, state, decisions):
        one_hot = torch.eye(x.shape[1], device=x.device).expand(x.shape[0], -1, -1)
        slots = decisions.merge(one_hot, 'amax').argmax(dim=1)
        return slots if state.source is None else slots.gather(1, state.source)
