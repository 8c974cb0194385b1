import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.drop import build_dropout
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule, ModuleList
from mmengine.model.weight_init import trunc_normal_
from mmengine.utils import to_2tuple
from mmpretrain.models.utils import build_norm_layer
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..layers import infer_grid, resize_pos_embed
from ..option_checks import refuse_token_fusion
from ..pretrained import load_pretrained
from ..quantization import quantizable


class SpatialReductionAttention(BaseModule):
    """Self-attention with keys and values of a coarser grid (PVT, arXiv 2102.12122, Sec. 3.3).

    Args:
        embed_dims (int): Width C of the tokens.
        num_heads (int): Number of heads.
        sr_ratio (int): Side of the blocks of tokens that become one key; 1 for none.
        qkv_bias (bool): Whether the projections have a bias. Defaults to True.
        drop_path (float): Stochastic depth rate of this residual branch. Defaults to 0.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(f'num_heads={num_heads} does not divide embed_dims={embed_dims}')
        self.num_heads = num_heads
        self.scale = (embed_dims // num_heads) ** -0.5
        self.q = nn.Linear(embed_dims, embed_dims, bias=qkv_bias)
        self.kv = nn.Linear(embed_dims, 2 * embed_dims, bias=qkv_bias)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.sr = None
        if sr_ratio > 1:
            self.sr = nn.Conv2d(embed_dims, embed_dims, sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(embed_dims)
        self.out_drop = build_dropout(dict(type='DropPath', drop_prob=drop_path))

    def project_qkv(self, x: Tensor, grid: tuple[int, int] | None = None) -> tuple[Tensor, ...]:
        """Queries ``(B, H, N, d)``, keys and values ``(B, H, M, d)`` of tokens ``(B, N, C)``."""
        keys = x
        if self.sr is not None:
            keys = self.sr(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
            keys = self.norm(keys)
        query = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key_value = self.kv(keys).unflatten(-1, (2, self.num_heads, -1))
        return query, *key_value.permute(2, 0, 3, 1, 4).unbind(0)

    def project_qk(self, x: Tensor, grid: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Queries and keys alone."""
        return self.project_qkv(x, grid)[:2]

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Self-attention over tokens ``(B, N, C)`` of a grid ``(h, w)``."""
        out = F.scaled_dot_product_attention(*self.project_qkv(x, grid), scale=self.scale)
        return self.out_drop(self.proj(out.transpose(1, 2).flatten(2)))


class PVTLayer(BaseModule):
    """Pre-norm block of PVT.

    Args:
        embed_dims (int): Width C of the tokens.
        num_heads (int): Number of heads.
        feedforward_channels (int): Hidden width of the MLP.
        sr_ratio (int): See :class:`SpatialReductionAttention`.
        qkv_bias (bool): Defaults to True.
        drop_rate (float): Dropout rate in the MLP. Defaults to 0.
        drop_path_rate (float): Stochastic depth rate of both branches. Defaults to 0.
        norm_cfg (dict): Norm. Defaults to LayerNorm with eps 1e-6.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_cfg: dict = dict(type='LN', eps=1e-6),
    ) -> None:
        super().__init__()
        self.ln1 = build_norm_layer(norm_cfg, embed_dims)
        self.attn = SpatialReductionAttention(
            embed_dims, num_heads, sr_ratio, qkv_bias, drop_path_rate
        )
        self.ln2 = build_norm_layer(norm_cfg, embed_dims)
        self.ffn = FFN(
            embed_dims,
            feedforward_channels,
            ffn_drop=drop_rate,
            dropout_layer=dict(type='DropPath', drop_prob=drop_path_rate),
            act_cfg=dict(type='GELU'),
        )

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Encode tokens ``(B, N, C)`` of a grid ``(h, w)``."""
        x = x + self.attn(self.ln1(x), grid)
        return self.ffn(self.ln2(x), identity=x)


class PVTStage(BaseModule):
    """Patch embedding, positions and blocks of one resolution.

    Args:
        in_channels (int): Channels of the map that comes in.
        embed_dims (int): Width C of the tokens.
        patch_size (int): Side of the patches that become one token.
        grid (tuple[int, int]): Usual grid of tokens.
        layers (Sequence[dict]): Arguments of the blocks besides ``embed_dims``.
        drop_rate (float): Dropout rate after the positions. Defaults to 0.
        with_cls_token (bool): Whether a class token joins. Defaults to False.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        patch_size: int,
        grid: tuple[int, int],
        layers: Sequence[dict],
        drop_rate: float = 0.0,
        with_cls_token: bool = False,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.num_extra_tokens = int(with_cls_token)
        self.projection = nn.Conv2d(in_channels, embed_dims, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dims)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dims)) if with_cls_token else None
        num_tokens = grid[0] * grid[1] + self.num_extra_tokens
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, embed_dims))
        self.drop_after_pos = nn.Dropout(drop_rate)
        self.layers = ModuleList(PVTLayer(embed_dims, **layer) for layer in layers)
        self._register_load_state_dict_pre_hook(self._prepare_pos_embed)

    def init_weights(self) -> None:
        super().init_weights()
        for parameter in (self.pos_embed, self.cls_token):
            if parameter is not None:
                trunc_normal_(parameter, std=0.02)

    def _prepare_pos_embed(self, state_dict: dict, prefix: str, *args: Any) -> None:
        name = prefix + 'pos_embed'
        if name in state_dict and state_dict[name].shape[1] != self.pos_embed.shape[1]:
            source = infer_grid(state_dict[name].shape[1] - self.num_extra_tokens, self.grid)
            state_dict[name] = self._resize(state_dict[name], self.grid, source)

    def _resize(self, pos_embed: Tensor, grid: tuple[int, int], source: tuple[int, int]) -> Tensor:
        return resize_pos_embed(pos_embed, grid, source, 'bilinear', self.num_extra_tokens)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens ``(B, N, C)`` and their grid, of a map ``(B, C', H, W)``."""
        x = self.projection(x)
        grid = (x.shape[2], x.shape[3])
        x = self.norm(x.flatten(2).transpose(1, 2))
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.drop_after_pos(x + self._resize(self.pos_embed, grid, self.grid))
        for layer in self.layers:
            x = layer(x, grid)
        return x, grid


@MODELS.register_module()
@quantizable
class PyramidVisionTransformer(BaseModule):
    """PVT (v1, arXiv 2102.12122) for classification: a class token joins in the last stage.

    mmdet's backbone of that name is the one for dense tasks, without class token.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'medium'``, ``'large'``, or a dict with
            ``embed_dims``, ``depths``, ``num_heads``, ``mlp_ratios`` and ``sr_ratios``, one entry
            a stage.
        img_size (int | tuple[int, int]): Usual input size ``(H, W)``; others work too. A multiple
            of the product of ``patch_sizes``.
        patch_sizes (Sequence[int]): Side of the patches of each stage. Defaults to (4, 2, 2, 2).
        in_channels (int): Channels of the image. Defaults to 3.
        qkv_bias (bool): Defaults to True.
        drop_rate (float): Dropout rate after the positions and in the MLPs. Defaults to 0.
        drop_path_rate (float): Stochastic depth, growing linearly over all blocks. Defaults to 0.
        norm_cfg (dict): Norm in the blocks and at the end. Defaults to LayerNorm with eps 1e-6.
        token_fusion (None): Refused.
        init_cfg (dict, optional): See :class:`VisionTransformer`.
    """

    arch_zoo = {
        name: dict(
            embed_dims=(64, 128, 320, 512),
            depths=depths,
            num_heads=(1, 2, 5, 8),
            mlp_ratios=(8, 8, 4, 4),
            sr_ratios=(8, 4, 2, 1),
        )
        for name, depths in {
            'tiny': (2, 2, 2, 2),
            'small': (3, 4, 6, 3),
            'medium': (3, 4, 18, 3),
            'large': (3, 8, 27, 3),
        }.items()
    }
    #: Leading tokens of what ``ln1`` returns that are no patches.
    num_extra_tokens = 1

    def __init__(
        self,
        arch: str | dict = 'tiny',
        img_size: int | tuple[int, int] = 224,
        patch_sizes: Sequence[int] = (4, 2, 2, 2),
        in_channels: int = 3,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        token_fusion: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        refuse_token_fusion(self, token_fusion, 'works on grids of tokens')
        super().__init__(init_cfg)
        if isinstance(arch, str):
            if arch not in self.arch_zoo:
                raise ValueError(f'Unknown arch {arch!r}; choose from {sorted(self.arch_zoo)}')
            arch = self.arch_zoo[arch]
        self.img_size = to_2tuple(img_size)
        total = math.prod(patch_sizes)
        if any(side % total for side in self.img_size):
            raise ValueError(f'img_size {self.img_size} must be a multiple of {total}')
        depths = arch['depths']
        rates = iter(np.linspace(0, drop_path_rate, sum(depths)).tolist())
        self.stages = ModuleList()
        grid = self.img_size
        for i, (dims, patch_size) in enumerate(zip(arch['embed_dims'], patch_sizes)):
            grid = (grid[0] // patch_size, grid[1] // patch_size)
            layer = dict(
                num_heads=arch['num_heads'][i],
                feedforward_channels=dims * arch['mlp_ratios'][i],
                sr_ratio=arch['sr_ratios'][i],
                qkv_bias=qkv_bias,
                drop_rate=drop_rate,
                norm_cfg=norm_cfg,
            )
            layers = [{**layer, 'drop_path_rate': next(rates)} for _ in range(depths[i])]
            self.stages.append(
                PVTStage(
                    in_channels,
                    dims,
                    patch_size,
                    grid,
                    layers,
                    drop_rate,
                    with_cls_token=i == len(patch_sizes) - 1,
                )
            )
            in_channels = dims
        self.embed_dims = in_channels
        self.ln1 = build_norm_layer(norm_cfg, self.embed_dims)

    @property
    def layers(self) -> ModuleList:
        """Blocks of the last stage."""
        return self.stages[-1].layers

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``, else initialise as PVT does."""
        if self.init_cfg and self.init_cfg.get('type') == 'Pretrained':
            load_pretrained(self, **{k: v for k, v in self.init_cfg.items() if k != 'type'})
            return
        super().init_weights()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Class token ``(B, C)`` after the final norm."""
        for stage in self.stages[:-1]:
            tokens, grid = stage(x)
            x = tokens.transpose(1, 2).unflatten(2, grid)
        tokens, _ = self.stages[-1](x)
        return (self.ln1(tokens)[:, 0],)
