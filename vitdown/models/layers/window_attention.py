from math import isqrt

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.model.weight_init import trunc_normal_
from mmpretrain.models.utils import WindowMSA
from torch import Tensor, nn


def resize_bias_table(table: Tensor, length: int) -> Tensor:
    """Bias table of a window of another side.

    Of a smaller window it is the part with its offsets, which keep their biases; for a larger one
    it is interpolated (bicubic, as Swin's authors do; arXiv 2103.14030, Sec. 3.2).

    Args:
        table (Tensor): ``((2 * side - 1) ** 2, heads)``.
        length (int): Rows of the new table, also the square of an odd number.
    """
    old, new = isqrt(len(table)), isqrt(length)
    square = table.view(old, old, -1)
    if new <= old:
        part = slice((old - new) // 2, (old + new) // 2)
        return square[part, part].reshape(length, -1)
    maps = square.permute(2, 0, 1)[None].float()
    maps = F.interpolate(maps, size=(new, new), mode='bicubic')[0]
    return maps.permute(1, 2, 0).reshape(length, -1).to(table.dtype)


class RelativePositionBias(BaseModule):
    """Learned bias for each offset between two tokens of a square window, as in Swin.

    Args:
        side (int): Side of the window.
        num_heads (int): Number of attention heads.
    """

    # Of another window, see resize_bias_table
    resized_state = ('relative_position_bias_table',)

    def __init__(self, side: int, num_heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * side - 1) ** 2, num_heads)
        )
        offsets = WindowMSA.double_step_seq(2 * side - 1, side, 1, side)
        index = (offsets + offsets.T).flip(1).contiguous()
        self.register_buffer('relative_position_index', index, persistent=False)

    def init_weights(self) -> None:
        super().init_weights()
        trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self) -> Tensor:
        """The bias ``(H, side ** 2, side ** 2)`` of all pairs of tokens, in raster order."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


class FusedWindowMSA(WindowMSA):
    """mmpretrain's window attention on the fused kernel, with its parameters and results."""

    resized_state = ('relative_position_bias_table', 'relative_position_index')

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Self-attention inside windows.

        Args:
            x (Tensor): Windows ``(B * num_windows, N, C)``.
            mask (Tensor, optional): ``(num_windows, N, N)``, added to the logits.
        """
        num_tokens, channels = x.shape[1:]
        heads = (self.num_heads, channels // self.num_heads)
        query, key, value = self.qkv(x).unflatten(-1, (3, *heads)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        bias = bias.to(query.dtype)[None]
        if mask is not None:
            repeats = x.shape[0] // mask.shape[0]
            bias = (bias + mask.to(bias.dtype)[:, None]).repeat(repeats, 1, 1, 1)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            scale=self.scale,
        )
        out = out.transpose(1, 2).reshape(-1, num_tokens, channels)
        return self.proj_drop(self.proj(out))
