from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.models.backbones import DeiT3 as MMPretrainDeiT3
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..layers import infer_grid, resize_pos_embed
from ..quantization import quantizable
from .vision_transformer import VisionTransformer


@MODELS.register_module()
@quantizable
class DeiT3(VisionTransformer):
    """DeiT III (arXiv 2204.07118): layer scale, and a class token without position.

    With the norms where the released weights were trained with them: mmpretrain's layers of that
    name run ``ln1`` before the MLP too, which costs its own checkpoints most of their accuracy.
    Parameter names are the same.

    Args:
        arch (str | dict): ``'small'``, ``'medium'``, ``'base'``, ``'large'``, ``'huge'``, or a dict
            as for :class:`VisionTransformer`.
        layer_scale_init_value (float): Initial layer scale. Defaults to 1e-5.
        interpolate_mode (str): How position embeddings are resized. Defaults to ``'bicubic'``.
        **kwargs: Other arguments of :class:`VisionTransformer`.
    """

    arch_zoo = MMPretrainDeiT3.arch_zoo

    def __init__(
        self,
        arch: str | dict = 'base',
        layer_scale_init_value: float = 1e-5,
        interpolate_mode: str = 'bicubic',
        **kwargs: Any,
    ) -> None:
        super().__init__(
            arch=arch,
            layer_scale_init_value=layer_scale_init_value,
            interpolate_mode=interpolate_mode,
            **kwargs,
        )
        if self.cls_token is None:
            raise ValueError('DeiT3 needs its class token')
        height, width = self.patch_resolution
        self.pos_embed = nn.Parameter(torch.zeros(1, height * width, self.embed_dims))

    def _prepare_pos_embed(self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any) -> None:
        name = prefix + 'pos_embed'
        if name in state_dict and state_dict[name].shape[1] != self.pos_embed.shape[1]:
            state_dict[name] = self._resize(state_dict[name], self.patch_resolution)

    def _resize(self, pos_embed: Tensor, grid: tuple[int, int]) -> Tensor:
        source = infer_grid(pos_embed.shape[1], self.patch_resolution)
        return resize_pos_embed(pos_embed, grid, source, self.interpolate_mode, 0)

    def embed_patches(
        self,
        x: Tensor,
        camera_ids: Sequence[int] | None = None,
        view_ids: Sequence[int] | None = None,
    ) -> tuple[Tensor, tuple[int, int]]:
        """See :meth:`VisionTransformer.embed_patches`."""
        x, grid = self.patch_embed(x)
        x = x + resize_pos_embed(
            self.pos_embed, grid, self.patch_resolution, self.interpolate_mode, 0
        )
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if self.sie is not None:
            x = x + self.sie(self.sie.index(camera_ids, view_ids))
        return self.pre_norm(self.drop_after_pos(x)), grid
