from functools import partial
from typing import Any

import torch.nn.functional as F
from mmpretrain.models.backbones.t2t_vit import T2TModule, get_sinusoid_encoding

from vitdown.registry import MODELS

from ..quantization import quantizable
from .vision_transformer import VisionTransformer


class TokensToToken(T2TModule):
    """mmpretrain's tokens-to-token module with the attention scale of the official code.

    That is ``input_dims ** -0.5``. mmpretrain's attention divides by the inverse square root of
    the head's width where a scale is asked for, that is, makes the logits larger.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for layer in (self.attention1, self.attention2):
            layer.attn.scaled_dot_product_attention = partial(
                F.scaled_dot_product_attention, scale=layer.attn.input_dims**-0.5
            )


@MODELS.register_module()
@quantizable
class T2TViT(VisionTransformer):
    """Tokens-to-Token ViT (arXiv 2101.11986) with everything that :class:`VisionTransformer` has.

    mmpretrain's tokens-to-token module in place of the patch embedding, and fixed sinusoidal
    position embeddings; the layers behind it are those of the plain ViT, so that token fusion,
    side information and token heads work.

    Args:
        arch (str | dict): ``'t2t-vit-7'``, ``'-10'``, ``'-12'``, ``'-14'``, ``'-19'`` or ``'-24'``,
            or a dict as for :class:`VisionTransformer`.
        token_dims (int): Width of the tokens-to-token module. Defaults to 64.
        in_channels (int): Channels of the images. Defaults to 3.
        norm_cfg (dict): Normalisation. Defaults to LayerNorm with eps 1e-5.
        **kwargs: Other arguments of :class:`VisionTransformer`, without patch options.
    """

    arch_zoo = {
        f't2t-vit-{depth}': {
            'embed_dims': width,
            'num_layers': depth,
            'num_heads': heads,
            'feedforward_channels': ratio * width,
            'qkv_bias': False,
        }
        for depth, width, heads, ratio in (
            (7, 256, 4, 2),
            (10, 256, 4, 2),
            (12, 256, 4, 2),
            (14, 384, 6, 3),
            (19, 448, 7, 3),
            (24, 512, 8, 3),
        )
    }

    def __init__(
        self,
        arch: str | dict = 't2t-vit-14',
        token_dims: int = 64,
        in_channels: int = 3,
        norm_cfg: dict = dict(type='LN', eps=1e-5),
        **kwargs: Any,
    ) -> None:
        if given := sorted({'patch_size', 'stride', 'patch_cfg'} & set(kwargs)):
            raise ValueError(f'T2TViT has no patch embedding to configure: {given}')
        super().__init__(arch, in_channels=in_channels, norm_cfg=norm_cfg, **kwargs)
        self.patch_embed = TokensToToken(
            img_size=self.img_size[0],
            in_channels=in_channels,
            embed_dims=self.embed_dims,
            token_dims=token_dims,
        )
        positions = get_sinusoid_encoding(*self.pos_embed.shape[1:]).to(self.pos_embed.device)
        del self.pos_embed
        self.register_buffer('pos_embed', positions)

    def init_weights(self) -> None:
        positions = self.pos_embed.clone()
        super().init_weights()
        if not self.init_cfg:
            self.pos_embed.copy_(positions)
