from typing import Any

import torch
from torch import Tensor, nn

from .attention import MultiheadAttention
from .encoder_layer import TransformerEncoderLayer


class TalkingHeadsAttention(MultiheadAttention):
    """Self-attention whose heads are mixed before and after the softmax (arXiv 2003.02436).

    ``proj_l`` mixes the logits, ``proj_w`` the weights. Arguments and parameter names are those of
    :class:`MultiheadAttention`; the weights it returns are those between the two mixes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.proj_l = nn.Linear(self.num_heads, self.num_heads)
        self.proj_w = nn.Linear(self.num_heads, self.num_heads)

    def weights(self, query: Tensor, key: Tensor, attn_bias: Tensor | None = None) -> Tensor:
        """Softmax of the mixed logits, ``(B, H, N, M)``, before ``proj_w``."""
        logits = _mix_heads(self.proj_l, (query * self.scale) @ key.transpose(-2, -1))
        return (logits if attn_bias is None else logits + attn_bias).softmax(dim=-1)

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_bias: Tensor | None = None,
        need_weights: bool | str = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`MultiheadAttention.mix`.

        Raises:
            ValueError: For ``need_weights='factors'``: mixed weights have none.
        """
        if need_weights not in (False, True):
            raise ValueError('Talking heads have no factors; use need_weights=True')
        weights = self.weights(query, key, attn_bias)
        dropout = self.attn_drop if self.training else 0.0
        mixed = nn.functional.dropout(_mix_heads(self.proj_w, weights), dropout, self.training)
        out = (mixed.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        return out, weights if need_weights else None


def _mix_heads(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ClassAttention(MultiheadAttention):
    """Attention of the class token alone to itself and the patches (CaiT, arXiv 2103.17239).

    Arguments are those of :class:`MultiheadAttention`; the projections ``q``, ``k`` and ``v`` are
    separate.
    """

    def __init__(
        self, embed_dims: int, num_heads: int, qkv_bias: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(embed_dims, num_heads, qkv_bias=qkv_bias, **kwargs)
        del self.qkv
        self.q = nn.Linear(embed_dims, embed_dims, bias=qkv_bias)
        self.k = nn.Linear(embed_dims, embed_dims, bias=qkv_bias)
        self.v = nn.Linear(embed_dims, embed_dims, bias=qkv_bias)

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query of the first token, keys and values of all, each ``(B, H, 1 or N, d)``."""
        parts = (self.q(x[:, :1]), self.k(x), self.v(x))
        return tuple(self._split_heads(part) for part in parts)


class TalkingHeadsLayer(TransformerEncoderLayer):
    """:class:`TransformerEncoderLayer` with :class:`TalkingHeadsAttention`."""

    attention = TalkingHeadsAttention

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-5,
        norm_cfg: dict = dict(type='LN', eps=1e-6),
    ) -> None:
        super().__init__(
            embed_dims,
            num_heads,
            feedforward_channels,
            qkv_bias=qkv_bias,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            layer_scale_init_value=layer_scale_init_value,
            norm_cfg=norm_cfg,
        )
        self.attn = self.attention(
            embed_dims,
            num_heads,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop_rate,
            proj_drop=drop_rate,
            drop_path=drop_path_rate,
            layer_scale_init_value=layer_scale_init_value,
        )


class ClassAttentionLayer(TalkingHeadsLayer):
    """Block that changes the class token alone; arguments of :class:`TalkingHeadsLayer`."""

    attention = ClassAttention

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, 1 + N, C)``, class token first, of which the others stay as they are."""
        out, _ = self.attn(self.ln1(x))
        cls_token = x[:, :1] + out
        cls_token = self.ffn(self.ln2(cls_token), identity=cls_token)
        return torch.cat((cls_token, x[:, 1:]), dim=1)
