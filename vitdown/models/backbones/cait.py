from typing import Any

import torch
from mmcv.cnn.bricks.transformer import PatchEmbed
from mmengine.model import BaseModule, ModuleList
from mmengine.model.weight_init import trunc_normal_
from mmengine.utils import to_2tuple
from mmpretrain.models.utils import build_norm_layer
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..layers import infer_grid, resize_pos_embed
from ..layers.talking_heads import ClassAttentionLayer, TalkingHeadsLayer
from ..option_checks import refuse_token_fusion
from ..pretrained import load_pretrained
from ..quantization import quantizable


def _arch(embed_dims: int, num_layers: int, num_heads: int) -> dict:
    return dict(
        embed_dims=embed_dims,
        num_layers=num_layers,
        num_heads=num_heads,
        feedforward_channels=4 * embed_dims,
    )


@MODELS.register_module()
@quantizable
class CaiT(BaseModule):
    """Class-attention image transformer (arXiv 2103.17239).

    The patches go through blocks of talking-heads self-attention; then a class token joins and
    alone goes through class-attention blocks.

    Args:
        arch (str | dict): ``'xxs24'``, ``'xxs36'``, ``'xs24'``, ``'s24'``, or a dict with
            ``embed_dims``, ``num_layers``, ``num_heads`` and ``feedforward_channels``.
        img_size (int | tuple[int, int]): Usual input size ``(H, W)``; others work too.
        patch_size (int): Side of a patch in pixels. Defaults to 16.
        num_cls_layers (int): Class-attention blocks. Defaults to 2.
        in_channels (int): Channels of the image. Defaults to 3.
        drop_rate (float): Dropout after the embedding and the projections. Defaults to 0.
        drop_path_rate (float): Stochastic depth of every self-attention block. Defaults to 0.
        layer_scale_init_value (float): Initial layer scale. Defaults to 1e-5.
        interpolate_mode (str): How position embeddings are resized. Defaults to ``'bicubic'``.
        norm_cfg (dict): Norm. Defaults to LayerNorm with eps 1e-6.
        token_fusion (None): Refused.
        init_cfg (dict, optional): See :class:`VisionTransformer`.
    """

    arch_zoo = {
        'xxs24': _arch(192, 24, 4),
        'xxs36': _arch(192, 36, 4),
        'xs24': _arch(288, 24, 6),
        's24': _arch(384, 24, 8),
    }
    #: Leading tokens of what ``ln1`` returns that are no patches.
    num_extra_tokens = 1

    def __init__(
        self,
        arch: str | dict = 'xxs24',
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        num_cls_layers: int = 2,
        in_channels: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-5,
        interpolate_mode: str = 'bicubic',
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        token_fusion: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        refuse_token_fusion(self, token_fusion, 'mixes the attention of its heads')
        super().__init__(init_cfg)
        if isinstance(arch, str):
            if arch not in self.arch_zoo:
                raise ValueError(f'Unknown arch {arch!r}; choose from {sorted(self.arch_zoo)}')
            arch = self.arch_zoo[arch]
        self.embed_dims = arch['embed_dims']
        self.num_layers = arch['num_layers']
        self.img_size = to_2tuple(img_size)
        self.interpolate_mode = interpolate_mode
        self.patch_embed = PatchEmbed(
            in_channels,
            self.embed_dims,
            input_size=self.img_size,
            kernel_size=patch_size,
            stride=patch_size,
        )
        self.patch_resolution = self.patch_embed.init_out_size
        num_patches = self.patch_resolution[0] * self.patch_resolution[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches, self.embed_dims))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
        self.drop_after_pos = nn.Dropout(drop_rate)
        layer_cfg = dict(
            embed_dims=self.embed_dims,
            num_heads=arch['num_heads'],
            feedforward_channels=arch['feedforward_channels'],
            layer_scale_init_value=layer_scale_init_value,
            norm_cfg=norm_cfg,
        )
        self.layers = ModuleList(
            TalkingHeadsLayer(drop_rate=drop_rate, drop_path_rate=drop_path_rate, **layer_cfg)
            for _ in range(self.num_layers)
        )
        self.layers.num_extra_tokens = 0  # the class token joins after them
        self.cls_layers = ModuleList(
            ClassAttentionLayer(**layer_cfg) for _ in range(num_cls_layers)
        )
        self.ln1 = build_norm_layer(norm_cfg, self.embed_dims)
        self._register_load_state_dict_pre_hook(self._prepare_pos_embed)

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``, else initialise as timm does."""
        if self.init_cfg and self.init_cfg.get('type') == 'Pretrained':
            load_pretrained(self, **{k: v for k, v in self.init_cfg.items() if k != 'type'})
            return
        super().init_weights()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)

    def _prepare_pos_embed(self, state_dict: dict, prefix: str, *args: Any) -> None:
        name = prefix + 'pos_embed'
        if name in state_dict and state_dict[name].shape[1] != self.pos_embed.shape[1]:
            grid = infer_grid(state_dict[name].shape[1], self.patch_resolution)
            state_dict[name] = resize_pos_embed(
                state_dict[name], self.patch_resolution, grid, self.interpolate_mode, 0
            )

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Class token ``(B, C)`` after the final norm."""
        x, grid = self.patch_embed(x)
        x = x + resize_pos_embed(
            self.pos_embed, grid, self.patch_resolution, self.interpolate_mode, 0
        )
        x = self.drop_after_pos(x)
        for layer in self.layers:
            x, _ = layer(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        for layer in self.cls_layers:
            x = layer(x)
        return (self.ln1(x)[:, 0],)
