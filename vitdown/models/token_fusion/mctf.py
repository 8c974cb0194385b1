from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..option_checks import check_flags, check_integers, check_numbers
from .assignment import Assignment, attend_fused, fuse_attention, fuse_tokens
from .base import TokenFusion, Weights, check_r, resolve_count
from .matching import match_bipartite, multi_criteria_scores
from .state import FusionState
from .streams import Streams

POOLINGS = ('size', 'info_size', 'max', 'mean')
_LEAST_SHARE = 1e-12
ATTENTIONS = ('previous', 'one_step_ahead', 'exact')


@MODELS.register_module()
class MCTF(TokenFusion):
    """Multi-criteria token fusion with one-step-ahead attention (arXiv 2403.10030).

    Similar, uninformative, small tokens fuse first. A token is as informative as the attention it
    receives in the very block that is to work with the fused tokens: the block computes its
    attention, fuses tokens and attention by it, and goes on with both.

    Args:
        r (int | float): Tokens to remove in each active block, or below 1 a fraction of the
            unprotected ones. Defaults to 16.
        layers (Iterable[int], optional): Active blocks, from 0. Defaults to all but the first.
        tau_sim (float): Temperature of the similarity; a criterion with temperature 0 is off.
        tau_info (float): Temperature of the informativeness.
        tau_size (float): Temperature of the size.
        bidirectional (bool): Match in both directions. Defaults to True.
        pooling (str): How tokens are combined: mean weighted by ``'size'`` or by informativeness
            and size (``'info_size'``), ``'max'``, or plain ``'mean'`` of the tokens at hand.
        attention (str): ``'one_step_ahead'`` as described; ``'exact'`` computes the attention
            anew after fusing; ``'previous'`` fuses at the end of the block, by its own attention.
        prop_attn (bool): Whether tokens attract attention in proportion to their size.
        min_tokens (int): A block with a number ``r`` leaves as many tokens, and one with so few
            fuses none. A fraction ``r`` may leave fewer, as in the official code. Defaults to 10.
        r_eval (int | float, optional): Replaces ``r`` in evaluation mode.
        explicit_map (bool): Fuse the attention map itself, as the official code does, where the
            same result can be had without. Slower; only so does counting multiply-adds give the
            paper's figures. Defaults to False.
        num_layers (int): Given by the backbone.
        num_protected (int): Given by the backbone.

    Examples:
        >>> MCTF(r=16, num_layers=12).schedule(197)[-3:]
        [53, 37, 21]
        >>> MCTF(r=0.35, layers=[3, 6, 9], num_layers=12).schedule(197)[::3]
        [197, 129, 85, 56]
        >>> MCTF(r=8, num_layers=3).schedule(17), MCTF(r=0.5, num_layers=3).schedule(17)
        ([17, 10, 10], [17, 9, 9])
    """

    def __init__(
        self,
        num_layers: int,
        r: int | float = 16,
        layers: Iterable[int] | None = None,
        tau_sim: float = 1.0,
        tau_info: float = 20.0,
        tau_size: float = 40.0,
        bidirectional: bool = True,
        pooling: str = 'info_size',
        attention: str = 'one_step_ahead',
        prop_attn: bool = True,
        min_tokens: int = 10,
        r_eval: int | float | None = None,
        explicit_map: bool = False,
        num_protected: int = 1,
    ) -> None:
        super().__init__(num_layers, num_protected, prop_attn)
        check_flags(bidirectional=bidirectional, explicit_map=explicit_map)
        check_r(r)
        if r_eval is not None:
            check_r(r_eval, 'r_eval')
        layers = range(1, num_layers) if layers is None else _block_indices(layers)
        if unknown := sorted(set(layers) - set(range(num_layers))):
            raise ValueError(f'layers {unknown} do not exist, the backbone has {num_layers}')
        if pooling not in POOLINGS:
            raise ValueError(f'pooling must be one of {POOLINGS}, got {pooling!r}')
        if attention not in ATTENTIONS:
            raise ValueError(f'attention must be one of {ATTENTIONS}, got {attention!r}')
        check_numbers(tau_sim=tau_sim, tau_info=tau_info, tau_size=tau_size)
        check_integers('min_tokens', min_tokens, 0)
        self.r = r
        self.r_eval = r_eval
        self.layers = frozenset(layers)
        self.tau_sim = tau_sim
        self.tau_info = tau_info
        self.tau_size = tau_size
        self.bidirectional = bidirectional
        self.pooling = pooling
        self.attention = attention
        self.min_tokens = min_tokens
        self.explicit_map = explicit_map

    def extra_repr(self) -> str:
        return f'r={self.r}, layers={sorted(self.layers)}, attention={self.attention!r}'

    def resolve_r(self, num_tokens: int, layer: int, r: int | float | None = None) -> int:
        if layer not in self.layers:
            return 0
        if r is None:
            r = self.r if self.training or self.r_eval is None else self.r_eval
        return resolve_count(num_tokens, r, self.num_protected, self.min_tokens)

    def fuse(
        self,
        block: nn.Module,
        x: Tensor,
        state: FusionState,
        r: int,
        streams: Streams,
        need_weights: bool | str,
    ) -> tuple[Tensor, FusionState, Weights]:
        if self.attention == 'previous':
            return self._fuse_after(block, x, state, r, streams, need_weights)
        if self.attention == 'exact':
            x, state = self._fuse_before(block, x, state, r, streams)
            x, attention = self.attend(block, x, state, streams, need_weights)
        else:
            x, state, attention = self._fuse_within(block, x, state, r, streams, need_weights)
        return block.ffn(block.ln2(x), identity=x), state, attention

    def _fuse_within(
        self,
        block: nn.Module,
        x: Tensor,
        state: FusionState,
        r: int,
        streams: Streams,
        need_weights: bool | str,
    ) -> tuple[Tensor, FusionState, Weights]:
        """Attention half of a block whose attention is fused with the tokens."""
        attn = block.attn
        query, key = attn.project_qk(block.ln1(x))
        weights = self._softmax(attn, query, key, self.bias(x, state), streams)
        attention = self.report(attn, need_weights, query, key, weights, state, streams)
        x, state, assignment, shares = self._fuse_tokens(x, state, weights, r, streams)
        value = attn.project_v(block.ln1(x))
        out = self._mix(attn, weights, value, assignment, shares, streams)
        return x + attn.project_out(out), state, attention

    def _fuse_before(
        self, block: nn.Module, x: Tensor, state: FusionState, r: int, streams: Streams
    ) -> tuple[Tensor, FusionState]:
        with torch.no_grad():
            query, key = block.attn.project_qk(block.ln1(x))
            weights = self._softmax(block.attn, query, key, self.bias(x, state), streams)
        x, state, _, _ = self._fuse_tokens(x, state, weights, r, streams)
        return x, state

    def _fuse_after(
        self,
        block: nn.Module,
        x: Tensor,
        state: FusionState,
        r: int,
        streams: Streams,
        need_weights: bool | str,
    ) -> tuple[Tensor, FusionState, Weights]:
        query, key, value = block.attn.project_qkv(block.ln1(x))
        out, weights = streams.attend(
            block.attn, query, key, value, self.bias(x, state), need_weights=True
        )
        attention = self.report(block.attn, need_weights, query, key, weights, state, streams)
        x = x + block.attn.project_out(out)
        x = block.ffn(block.ln2(x), identity=x)
        x, state, _, _ = self._fuse_tokens(x, state, weights, r, streams)
        return x, state, attention

    @staticmethod
    def _softmax(
        attn: nn.Module, query: Tensor, key: Tensor, bias: Tensor | None, streams: Streams
    ) -> list[Tensor]:
        """Attention weights ``(B, H, N, M)`` of each stream."""
        parts = zip(streams.queries(query), streams.keys(key, 2), streams.keys(bias, 3))
        return [attn.used_weights(attention_weights(q, k, b, attn.scale)) for q, k, b in parts]

    def _fuse_tokens(
        self,
        x: Tensor,
        state: FusionState,
        weights: Iterable[Tensor],
        r: int,
        streams: Streams,
    ) -> tuple[Tensor, FusionState, Assignment, Tensor | None]:
        """Fuse ``r`` tokens of each image by the attention that tokens receive from their own."""
        with torch.no_grad():
            received = streams.join([attention_received(w)[:, : x.shape[1]] for w in weights])
            assignment = self.match(x, received, state.size, r)
            sizes = state.sizes(x)
            shares = self.shares(assignment, received, sizes)
        return (
            fuse_tokens(x, assignment, shares),
            state.fused(assignment, sizes),
            assignment,
            shares,
        )

    def match(self, x: Tensor, received: Tensor, size: Tensor | None, r: int) -> Assignment:
        """Choose ``r`` tokens to be fused, see :func:`multi_criteria_scores`."""
        scores = multi_criteria_scores(
            x, received, size, self.tau_sim, self.tau_info, self.tau_size, self.num_protected
        )
        return match_bipartite(scores, r, self.num_protected, self.bidirectional)

    def shares(self, assignment: Assignment, received: Tensor, sizes: Tensor) -> Tensor | None:
        """Weight of each token in the one it goes to, see :func:`fuse_tokens`."""
        if self.pooling == 'max':
            return None
        if self.pooling == 'mean':
            return assignment.shares(torch.ones_like(sizes))
        if self.pooling == 'size':
            return assignment.shares(sizes)
        weights = received * sizes
        largest = weights.amax(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        # Low-bit attention may leave tokens without any: among themselves they count alike.
        return assignment.shares((weights / largest).clamp(min=_LEAST_SHARE))

    def _mix(
        self,
        attn: nn.Module,
        weights: list[Tensor],
        value: Tensor,
        assignment: Assignment,
        shares: Tensor | None,
        streams: Streams,
    ) -> Tensor:
        """Fused attention times values ``(B, H, N', d)``: ``(B, N', C)``."""
        dropout = attn.attn_drop if self.training else 0.0
        if not (self.explicit_map or shares is None or dropout):
            return attend_fused(weights, value, assignment, shares, streams)
        if streams.partner is not None:
            raise ValueError(
                "MCTF with pooling='max', attention dropout or explicit_map=True fuses attention "
                "maps and can't be combined with pair-wise cross-attention (DCAL); use another "
                'pooling and attn_drop_rate=0'
            )
        fused = fuse_attention(weights[0], assignment, shares)
        out = F.dropout(fused, dropout, self.training) @ value
        return out.transpose(1, 2).flatten(2)


def _block_indices(layers: Iterable[int]) -> list[int]:
    indices = [*layers] if isinstance(layers, Iterable) else [None]
    if not all(type(index) is int for index in indices):
        raise ValueError(
            f'layers must be a list of indices of blocks, e.g. [3, 6, 9], got {layers!r}'
        )
    return indices


def attention_weights(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Softmax of ``scale * query @ key.T + bias`` in one product.

    Args:
        query (Tensor): ``(B, H, N, d)`` or ``(B, 1, N, d)``.
        key (Tensor): ``(B, H, M, d)`` or ``(B, 1, M, d)``.
        bias (Tensor, optional): ``(B, 1, 1, M)``.
        scale (float): Factor on the products.

    Returns:
        Tensor: ``(B, H, N, M)``.
    """
    # Queries that all heads share (query-key reparametrisation) have one head.
    heads = torch.broadcast_shapes(query.shape[:2], key.shape[:2])
    query, key = (x.expand(*heads, -1, -1) for x in (query, key))
    # Transposing what is contiguous costs nothing, the other way round it is a slow copy.
    query, key = (x.contiguous().flatten(0, 1) for x in (query, key))
    if bias is None:
        start, beta = query.new_zeros(1), 0
    else:
        start, beta = bias.expand(*heads, -1, -1).flatten(0, 1), 1
    logits = torch.baddbmm(start, query, key.transpose(1, 2), beta=beta, alpha=scale)
    return logits.softmax(dim=-1).unflatten(0, heads)


def attention_received(weights: Tensor) -> Tensor:
    """Mean attention that each key gets in ``(B, H, N, M)``, of heads and queries: ``(B, M)``."""
    return weights.mean(dim=(1, 2), dtype=torch.promote_types(weights.dtype, torch.float32))
