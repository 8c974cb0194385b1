from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .assignment import Assignment, gather_tokens


@dataclass(frozen=True)
class FusionState:
    """What token fusion remembers from block to block; a new object after every fusion.

    Attributes:
        size (Tensor, optional): ``(B, N)`` float32, number of input tokens in each token; None
            until the first fusion.
        source (Tensor, optional): ``(B, T)`` int64, for each of the T tokens that entered the
            first layer (class token first) the token it is part of now; None likewise.
        r (int | float, optional): Tokens to remove in each active block of this forward pass,
            instead of the policy's own setting.
    """

    size: Tensor | None = None
    source: Tensor | None = None
    r: int | float | None = None

    def sizes(self, tokens: Tensor) -> Tensor:
        """Sizes ``(B, N)`` of tokens ``(B, N, C)``, ones before the first fusion."""
        if self.size is not None:
            return self.size
        return tokens.new_ones(tokens.shape[:2], dtype=torch.float32)

    def fused(self, assignment: Assignment, sizes: Tensor) -> 'FusionState':
        """State after fusing tokens of the given ``sizes``."""
        if self.source is None:
            source = assignment.slots
        else:
            source = assignment.slots.gather(1, self.source)
        return replace(self, size=assignment.sum(sizes), source=source)

    def narrow(self, batch: int) -> 'FusionState':
        """State of the first ``batch`` images."""
        if self.size is None or self.source is None or self.size.shape[0] == batch:
            return self
        return replace(self, size=self.size[:batch], source=self.source[:batch])

    def log_size(self, dtype: torch.dtype) -> Tensor | None:
        """Bias ``(B, 1, 1, N)`` of proportional attention (ToMe, Sec. 3.2), None if there is none.

        Added to the logits, it lets a token of size s attract as much attention as s equal ones.
        """
        return None if self.size is None else self.size.log()[:, None, None].to(dtype)

    def spread(self, tokens: Tensor) -> Tensor:
        """Give every input token the vector of the token it is part of: ``(B, T, ...)``."""
        return tokens if self.source is None else gather_tokens(tokens, self.source)

    def spread_attention(self, attn: Tensor) -> Tensor:
        """Attention ``(B, N, N)`` as one between input tokens, ``(B, T, T)``; rows sum to 1.

        The attention that a fused token receives is shared equally by its input tokens.
        """
        if self.source is None or self.size is None:
            return attn
        columns = self.spread((attn / self.size[:, None]).transpose(1, 2))
        return self.spread(columns.transpose(1, 2))

    def spread_factors(
        self, query: Tensor, key: Tensor, proportional: bool
    ) -> tuple[Tensor, Tensor]:
        """Factors of :meth:`spread_attention`, for queries and keys ``(B, H, N, d)``.

        A softmax over input tokens counts a fused key as often as its size. That is what
        proportional attention does by its bias; without it the copies are scaled down in a
        further channel.
        """
        if self.source is None or self.size is None:
            return query, key
        if not proportional:
            bias = -self.size.log().to(key.dtype)[:, None, :, None]
            query = torch.cat((query, torch.ones_like(query[..., :1])), dim=-1)
            key = torch.cat((key, bias.expand_as(key[..., :1])), dim=-1)
        return tuple(self.spread(x.transpose(1, 2)).transpose(1, 2) for x in (query, key))
