from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule
from mmpretrain.models.utils import build_norm_layer
from torch import Tensor

from .attention import MultiheadAttention
from .pairwise import two_stream_attention


class TransformerEncoderLayer(BaseModule):
    """Pre-norm ViT block: ``x + attn(ln1(x))``, then ``x + ffn(ln2(x))``.

    Parameter names are those of mmpretrain's ``VisionTransformer`` layers.

    Args:
        embed_dims (int): Width C of the tokens.
        num_heads (int): Number of attention heads.
        feedforward_channels (int): Hidden width of the MLP.
        qkv_bias (bool): Whether ``attn.qkv`` has a bias. Defaults to True.
        qk_scale (float, optional): Factor on ``q @ k.T``. Defaults to ``qk_dims ** -0.5``.
        qk_dims (int, optional): See :class:`MultiheadAttention`.
        v_dims (int, optional): See :class:`MultiheadAttention`.
        drop_rate (float): Dropout rate after the projections. Defaults to 0.
        attn_drop_rate (float): Dropout rate on the attention weights. Defaults to 0.
        drop_path_rate (float): Stochastic depth rate of both branches. Defaults to 0.
        layer_scale_init_value (float): Initial layer scale, 0 for none. Defaults to 0.
        act_cfg (dict): Activation of the MLP. Defaults to exact (erf) GELU.
        norm_cfg (dict): Normalisation. Defaults to LayerNorm with eps 1e-6.
        init_cfg (dict, optional): MMEngine initialisation config.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        qk_dims: int | None = None,
        v_dims: int | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 0.0,
        act_cfg: dict = dict(type='GELU'),
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.embed_dims = embed_dims
        self.ln1 = build_norm_layer(norm_cfg, embed_dims)
        self.attn = MultiheadAttention(
            embed_dims,
            num_heads,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            qk_dims=qk_dims,
            v_dims=v_dims,
            attn_drop=attn_drop_rate,
            proj_drop=drop_rate,
            drop_path=drop_path_rate,
            layer_scale_init_value=layer_scale_init_value,
        )
        self.ln2 = build_norm_layer(norm_cfg, embed_dims)
        self.ffn = FFN(
            embed_dims,
            feedforward_channels,
            ffn_drop=drop_rate,
            dropout_layer=dict(type='DropPath', drop_prob=drop_path_rate),
            act_cfg=act_cfg,
            layer_scale_init_value=layer_scale_init_value,
        )

    def forward(
        self,
        x: Tensor,
        attn_bias: Tensor | None = None,
        need_weights: bool | str = False,
        partner: Tensor | None = None,
        partner_stream: str = 'pwca',
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor] | None]:
        """Encode tokens.

        Args:
            x (Tensor): Tokens ``(B, N, C)``; with ``partner`` two streams ``(2B, N, C)``.
            attn_bias (Tensor, optional): Added to the attention logits.
            need_weights (bool | str): See :meth:`MultiheadAttention.attend`.
            partner (Tensor, optional): See :func:`two_stream_attention`.
            partner_stream (str): See :func:`two_stream_attention`.

        Returns:
            tuple: Tokens of the shape of ``x``, and the weights ``(B, H, N, N)`` of
            self-attention, their factors or None.
        """
        if partner is None:
            out, weights = self.attn(self.ln1(x), attn_bias, need_weights)
        elif attn_bias is not None:
            raise ValueError('Pair-wise cross-attention takes no attn_bias')
        else:
            out, weights = two_stream_attention(
                self.attn, self.ln1(x), partner, partner_stream, need_weights
            )
        x = x + out
        return self.ffn(self.ln2(x), identity=x), weights
