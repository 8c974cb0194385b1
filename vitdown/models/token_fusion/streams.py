from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Streams:
    """Which keys and values the queries of a batch meet.

    Usually their own image's. In the pair-wise cross-attention of DCAL (arXiv 2205.02151,
    Sec. 3.3) a second stream lies behind the first on the batch axis, whose queries meet the
    partner's keys too.

    Args:
        partner (Tensor, optional): ``(B,)`` index of each image's partner; None for one stream.
        partner_stream (str): See :func:`vitdown.models.layers.two_stream_attention`.
    """

    def __init__(self, partner: Tensor | None = None, partner_stream: str = 'pwca') -> None:
        if partner_stream not in ('pwca', 'sa'):
            raise ValueError(f"partner_stream must be 'pwca' or 'sa', got {partner_stream!r}")
        self.partner = partner
        self.partner_stream = partner_stream

    def queries(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x`` cut into its streams along the batch axis."""
        return (x,) if self.partner is None else x.chunk(2)

    def keys(self, x: Tensor | None, dim: int) -> tuple[Tensor | None, ...]:
        """What the queries of each stream meet, own tokens first along ``dim``."""
        if x is None:
            return (None,) if self.partner is None else (None, None)
        if self.partner is None:
            return (x,)
        first, second = x.chunk(2)
        other = second if self.partner_stream == 'pwca' else first
        return first, torch.cat((second, other.index_select(0, self.partner)), dim=dim)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of :meth:`queries`."""
        return parts[0] if self.partner is None else torch.cat(parts)

    def attend(
        self,
        attn: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Softmax attention before the output projection.

        Args:
            attn (MultiheadAttention): Attention module of the layer.
            query (Tensor): ``(B, H, N, d)``, of all streams.
            key (Tensor): ``(B, H, N, d)``.
            value (Tensor): ``(B, H, N, d)``.
            bias (Tensor, optional): ``(B, 1, 1, N)`` on the logits of each key.
            need_weights (bool): Also return the weights.

        Returns:
            tuple: ``(B, N, C)``, and the weights ``(B, H, N, M)`` of each stream or Nones.
        """
        parts = zip(self.queries(query), self.keys(key, 2), self.keys(value, 2), self.keys(bias, 3))
        outs, weights = zip(*(attn.mix(*part, need_weights) for part in parts))
        return self.join(outs), weights
