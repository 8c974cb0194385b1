"""Bricks of ViTs from which channels, heads or tokens' shares were pruned."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdown.registry import MODELS


@MODELS.register_module()
class PrunedLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels left of a wider token whose other channels are zero.

    Mean and variance are those of the wide token, so a model whose embedding was pruned computes
    the same as before the zeros were cut out.

    Args:
        normalized_shape (int): Channels left, C.
        norm_dims (int): Channels of the wide token, at least C.
        **kwargs: Other arguments of :class:`torch.nn.LayerNorm`.

    Raises:
        ValueError: If ``norm_dims`` is below C.
    """

    def __init__(self, normalized_shape: int, norm_dims: int, **kwargs: Any) -> None:
        super().__init__(normalized_shape, **kwargs)
        if norm_dims < normalized_shape:
            raise ValueError(f'norm_dims={norm_dims} is below the {normalized_shape} channels left')
        self.norm_dims = norm_dims

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of ``(..., C)``."""
        channels = self.normalized_shape[0]
        if channels == self.norm_dims:
            return super().forward(x)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean = wide.sum(dim=-1, keepdim=True) / self.norm_dims
        centred = wide - mean
        # The zeros cut out lie at -mean around the mean.
        absent = (self.norm_dims - channels) * mean.square()
        variance = (centred.square().sum(dim=-1, keepdim=True) + absent) / self.norm_dims
        out = centred * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias, out, self.weight).to(x.dtype)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, norm_dims={self.norm_dims}'


class TokenScaledLinear(nn.Linear):
    """Linear layer whose output of each token is multiplied by a learnt factor of its position.

    Args:
        in_features (int): Input channels.
        out_features (int): Output channels.
        num_tokens (int): Number of tokens N.
        bias (bool): Defaults to True.
    """

    def __init__(
        self, in_features: int, out_features: int, num_tokens: int, bias: bool = True
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.token_scale = nn.Parameter(torch.ones(num_tokens, 1))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, 'token_scale'):
            nn.init.ones_(self.token_scale)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, in_features)`` to ``(B, N, out_features)``.

        Raises:
            ValueError: If there are not N tokens.
        """
        if x.shape[1] != len(self.token_scale):
            raise ValueError(
                f'{x.shape[1]} tokens, but token_scale has factors for {len(self.token_scale)}; '
                'set img_size of the backbone to the size of the images'
            )
        return F.linear(x, self.weight, self.bias) * self.token_scale
