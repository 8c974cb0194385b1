import math
from abc import abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import TypeAlias

from torch import Tensor, nn

from ..option_checks import check_flags
from .state import FusionState
from .streams import Streams

Weights: TypeAlias = Tensor | tuple[Tensor, Tensor] | None


class TokenFusion(nn.Module):
    """Policy that runs the blocks of a plain ViT and fuses tokens in some of them.

    Without parameters and without memory: what it knows of an image is in the
    :class:`FusionState` that goes from block to block. How many tokens remain after each block
    depends on their number alone, never on the image.

    Args:
        num_layers (int): Number of blocks.
        num_protected (int): Leading tokens that are never fused (class and distillation token).
        prop_attn (bool): Proportional attention, see :meth:`FusionState.log_size`.
    """

    def __init__(self, num_layers: int, num_protected: int = 1, prop_attn: bool = True) -> None:
        super().__init__()
        check_flags(prop_attn=prop_attn)
        self.num_layers = num_layers
        self.num_protected = num_protected
        self.prop_attn = prop_attn

    @abstractmethod
    def resolve_r(self, num_tokens: int, layer: int, r: int | float | None = None) -> int:
        """Number of tokens that block ``layer`` removes of ``num_tokens``; 0 for none.

        Args:
            num_tokens (int): Tokens that enter the block, protected ones included.
            layer (int): Index of the block, from 0.
            r (int | float, optional): Replaces the policy's own setting.
        """

    def schedule(self, num_tokens: int, r: int | float | None = None) -> list[int]:
        """Number of tokens after each block, for ``num_tokens`` that enter the first."""
        counts = []
        for layer in range(self.num_layers):
            num_tokens -= self.resolve_r(num_tokens, layer, r)
            counts.append(num_tokens)
        return counts

    def forward(
        self,
        block: nn.Module,
        layer: int,
        x: Tensor,
        state: FusionState,
        need_weights: bool | str = False,
        partner: Tensor | None = None,
        partner_stream: str = 'pwca',
    ) -> tuple[Tensor, FusionState, Weights]:
        """Run one block.

        Args:
            block (TransformerEncoderLayer): The block.
            layer (int): Its index, from 0.
            x (Tensor): Tokens ``(B, N, C)``; with ``partner`` two streams ``(2B, N, C)``.
            state (FusionState): Sizes and sources of these tokens.
            need_weights (bool | str): True for the head-averaged attention ``(B, T, T)`` between
                the T input tokens, spread from the fused ones; ``'factors'`` for its factors
                ``(B, H, T, d)``, detached.
            partner (Tensor, optional): See :class:`Streams`.
            partner_stream (str): See :class:`Streams`.

        Returns:
            tuple: Tokens ``(B, N', C)``, their state, and the weights asked for or None.
        """
        streams = Streams(partner, partner_stream)
        r = self.resolve_r(x.shape[1], layer, state.r)
        if r == 0:
            x, attention = self.attend(block, x, state, streams, need_weights)
            return block.ffn(block.ln2(x), identity=x), state, attention
        return self.fuse(block, x, state, r, streams, need_weights)

    @abstractmethod
    def fuse(
        self,
        block: nn.Module,
        x: Tensor,
        state: FusionState,
        r: int,
        streams: Streams,
        need_weights: bool | str,
    ) -> tuple[Tensor, FusionState, Weights]:
        """Run a block that removes ``r`` tokens; arguments and result as in :meth:`forward`."""

    def bias(self, x: Tensor, state: FusionState) -> Tensor | None:
        """Bias on the attention logits of tokens ``x``, ``(B, 1, 1, N)`` or None."""
        return state.log_size(x.dtype) if self.prop_attn else None

    def attend(
        self,
        block: nn.Module,
        x: Tensor,
        state: FusionState,
        streams: Streams,
        need_weights: bool | str = False,
    ) -> tuple[Tensor, Weights]:
        """The attention half of a block, without fusing: ``x + attn(ln1(x))`` and the weights."""
        query, key, value = block.attn.project_qkv(block.ln1(x))
        out, weights = streams.attend(
            block.attn, query, key, value, self.bias(x, state), need_weights is True
        )
        x = x + block.attn.project_out(out)
        return x, self.report(block.attn, need_weights, query, key, weights, state, streams)

    def report(
        self,
        attn: nn.Module,
        need_weights: bool | str,
        query: Tensor,
        key: Tensor,
        weights: Sequence[Tensor | None],
        state: FusionState,
        streams: Streams,
    ) -> Weights:
        """Attention of the first stream between input tokens, in the form asked for."""
        if need_weights not in (False, True, 'factors'):
            raise ValueError(f"need_weights must be a bool or 'factors', got {need_weights!r}")
        if not need_weights:
            return None
        query, key = streams.queries(query)[0], streams.queries(key)[0]
        state = state.narrow(query.shape[0])
        if need_weights is True:
            assert weights[0] is not None  # attend was told to return them
            return state.spread_attention(weights[0].mean(dim=1))
        return state.spread_factors(query.detach() * attn.scale, key.detach(), self.prop_attn)


def check_r(r: float, name: str = 'r') -> None:
    """Check a number of tokens to remove.

    Raises:
        ValueError: Unless it is an integer of at least 0 or a fraction below 1.
    """
    valid = isinstance(r, Real) and not isinstance(r, bool) and 0 <= r < math.inf
    if not valid or (r >= 1 and r != int(r)):
        raise ValueError(
            f'{name} must be a number of tokens (0, 1, 2 ...) or a fraction of them below 1, '
            f'got {r!r}'
        )


def resolve_count(
    num_tokens: int, r: int | float, num_protected: int = 1, min_tokens: int = 0
) -> int:
    """Number of tokens to remove where ``r`` are asked for.

    Args:
        num_tokens (int): Tokens N, protected ones included.
        r (int | float): A number, or below 1 a fraction of the unprotected tokens.
        num_protected (int): Protected tokens P. Defaults to 1.
        min_tokens (int): A number ``r`` leaves as many tokens, if there are so many. A fraction
            is not held up by it where there are more. Defaults to 0.

    Returns:
        int: At most ``(N - P) // 2``, at least 0.
    """
    r = min(r, num_tokens - min_tokens)
    if 0 < r < 1:
        r = int((num_tokens - num_protected) * r)
    return max(0, min(int(r), (num_tokens - num_protected) // 2))
