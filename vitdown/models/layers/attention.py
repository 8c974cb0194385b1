import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.drop import build_dropout
from mmengine.model import BaseModule
from mmpretrain.models.utils import LayerScale
from torch import Tensor, nn

from .take_tokens import take_tokens


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    dropout: float,
    scale: float,
) -> Tensor:
    """Mixed values ``(B, H, N, v_dims)`` by the fastest kernel that there is.

    The CPU's fused kernel wants values as wide as queries; else PyTorch spells attention out. Zeros
    make pruned heads fit and change nothing.
    """
    qk_dims, v_dims = query.shape[-1], value.shape[-1]
    width = max(qk_dims, v_dims)
    if (
        qk_dims != v_dims
        and query.device.type == 'cpu'
        and not dropout
        and not torch.compiler.is_exporting()
        # Not where operations are counted, which has the kernel disabled
        and torch.backends.cuda.flash_sdp_enabled()
    ):
        query, key = (F.pad(x, (0, width - qk_dims)) for x in (query, key))
        value = F.pad(value, (0, width - v_dims))
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attn_bias, dropout_p=dropout, scale=scale
    )
    return out[..., :v_dims]


class MultiheadAttention(BaseModule):
    """Multi-head self-attention with mmpretrain's parameter names (``qkv``, ``proj``).

    Runs through :func:`torch.nn.functional.scaled_dot_product_attention`; the softmax is spelled
    out only when the attention weights are asked for. Projection and attention are separate
    methods, so that blocks which mix the keys of two images or bias the logits reuse both.

    Args:
        embed_dims (int): Width C of the tokens.
        num_heads (int): Number of heads H; must divide ``embed_dims`` unless both ``qk_dims`` and
            ``v_dims`` are given.
        qkv_bias (bool): Whether ``qkv`` has a bias. Defaults to True.
        qk_scale (float, optional): Factor on ``q @ k.T``. Defaults to ``qk_dims ** -0.5``.
        qk_dims (int, optional): Channels of a head's queries and keys. Defaults to C // H.
        v_dims (int, optional): Channels of a head's values. Defaults to C // H.
        attn_drop (float): Dropout rate on the attention weights. Defaults to 0.
        proj_drop (float): Dropout rate after the output projection. Defaults to 0.
        drop_path (float): Stochastic depth rate of this residual branch. Defaults to 0.
        layer_scale_init_value (float): Initial layer scale, 0 for none. Defaults to 0.
        init_cfg (dict, optional): MMEngine initialisation config.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        qk_dims: int | None = None,
        v_dims: int | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if embed_dims % num_heads and None in (qk_dims, v_dims):
            raise ValueError(f'num_heads={num_heads} does not divide embed_dims={embed_dims}')
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.qk_dims = qk_dims or embed_dims // num_heads
        self.v_dims = v_dims or embed_dims // num_heads
        self.scale = self.qk_dims**-0.5 if qk_scale is None else qk_scale
        self.attn_drop = attn_drop

        self.qkv = nn.Linear(embed_dims, sum(self.part_sizes), bias=qkv_bias)
        self.proj = nn.Linear(num_heads * self.v_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop)
        self.out_drop = build_dropout(dict(type='DropPath', drop_prob=drop_path))
        self.gamma1 = (
            LayerScale(embed_dims, layer_scale_init_value=layer_scale_init_value)
            if layer_scale_init_value > 0
            else nn.Identity()
        )

    @property
    def part_sizes(self) -> tuple[int, int, int]:
        """Rows of ``qkv`` that belong to queries, keys and values."""
        queries, values = self.num_heads * self.qk_dims, self.num_heads * self.v_dims
        return queries, queries, values

    def _split_heads(self, x: Tensor) -> Tensor:
        """``(B, N, H * d)`` to ``(B, H, N, d)``."""
        # Not unflatten, by which a traced ONNX graph takes the batch size for a constant.
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens ``(B, N, C)``.

        Returns:
            tuple: Queries and keys ``(B, H, N, qk_dims)``, values ``(B, H, N, v_dims)``.
        """
        parts = self.qkv(x).split(self.part_sizes, dim=-1)
        return tuple(self._split_heads(part) for part in parts)

    def project_local_qkv(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of some tokens, keys and values of all.

        Args:
            x (Tensor): Tokens ``(B, N, C)``.
            rows (Tensor): ``(B, R)`` indices of the tokens that ask.

        Returns:
            tuple: Queries ``(B, H, R, d)``, keys and values ``(B, H, N, d)``.
        """
        if type(self.qkv) is not nn.Linear:
            # A replaced layer (quantized, adapted) has to see the tokens itself.
            query, key, value = self.project_qkv(x)
            return take_tokens(query, rows), key, value
        local = take_tokens(x, rows)
        return *self._project_part(local, 0, 1), *self._project_part(x, 1, 3)

    def project_qk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys alone of tokens ``(B, N, C)``, each ``(B, H, N, d)``."""
        return self._project_part(x, 0, 2)

    def project_q(self, x: Tensor) -> Tensor:
        """Queries alone of tokens ``(B, N, C)``: ``(B, H, N, d)``."""
        return self._project_part(x, 0, 1)[0]

    def project_kv(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values alone of tokens ``(B, N, C)``, each ``(B, H, N, d)``."""
        return self._project_part(x, 1, 3)

    def project_v(self, x: Tensor) -> Tensor:
        """Values alone of tokens ``(B, N, C)``: ``(B, H, N, d)``."""
        return self._project_part(x, 2, 3)[0]

    def _project_part(self, x: Tensor, begin: int, end: int) -> tuple[Tensor, ...]:
        if type(self.qkv) is not nn.Linear:
            # A replaced layer (quantized, adapted) computes all or nothing.
            return self.project_qkv(x)[begin:end]
        sizes = self.part_sizes
        rows = slice(sum(sizes[:begin]), sum(sizes[:end]))
        bias = None if self.qkv.bias is None else self.qkv.bias[rows]
        parts = F.linear(x, self.qkv.weight[rows], bias).split(sizes[begin:end], dim=-1)
        return tuple(self._split_heads(part) for part in parts)

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_bias: Tensor | None = None,
        need_weights: bool | str = False,
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor] | None]:
        """Softmax attention before the output projection; see :meth:`attend`.

        Returns:
            tuple: Values mixed by the weights, ``(B, N, H * v_dims)``, and what ``need_weights``
            asks for.
        """
        if need_weights not in (False, True, 'factors'):
            raise ValueError(f"need_weights must be a bool or 'factors', got {need_weights!r}")
        dropout = self.attn_drop if self.training else 0.0
        weights = None
        if need_weights is True:
            logits = (query * self.scale) @ key.transpose(-2, -1)
            if attn_bias is not None:
                logits = logits + attn_bias
            weights = self.used_weights(logits.softmax(dim=-1))
            out = F.dropout(weights, dropout, self.training) @ value
        else:
            out = _fused_attention(query, key, value, attn_bias, dropout, self.scale)
            if need_weights:
                weights = (query.detach() * self.scale, key.detach())
        return out.transpose(1, 2).flatten(2), weights

    def used_weights(self, weights: Tensor) -> Tensor:
        """What values are mixed by: softmax weights ``(B, H, N, M)`` as they are."""
        return weights

    def project_out(self, x: Tensor) -> Tensor:
        """Output projection, layer scale and drop path of ``(B, N, H * v_dims)``."""
        return self.out_drop(self.gamma1(self.proj_drop(self.proj(x))))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_bias: Tensor | None = None,
        need_weights: bool | str = False,
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor] | None]:
        """Softmax attention, output projection and drop path.

        Args:
            query (Tensor): ``(B, H, N, d)``.
            key (Tensor): ``(B, H, M, d)``.
            value (Tensor): ``(B, H, M, d)``.
            attn_bias (Tensor, optional): Added to the logits, broadcast to ``(B, H, N, M)``.
            need_weights (bool | str): True to return the softmax output, before dropout, too;
                ``'factors'`` for what it can be computed from without giving up the fused kernel:
                the scaled queries and the keys, detached (without ``attn_bias``).

        Returns:
            tuple: The branch's output ``(B, N, C)`` and the weights ``(B, H, N, M)``, their
            factors or None.
        """
        out, weights = self.mix(query, key, value, attn_bias, need_weights)
        return self.project_out(out), weights

    def forward(
        self, x: Tensor, attn_bias: Tensor | None = None, need_weights: bool | str = False
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor] | None]:
        """Self-attention over tokens ``(B, N, C)``; see :meth:`attend` for the result."""
        return self.attend(*self.project_qkv(x), attn_bias, need_weights)
