from typing import Any

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..quantization import quantizable
from .vision_transformer import VisionTransformer


class ConvStem(BaseModule):
    """LV-ViT's patch embedding: three convolutions at half the resolution, then patches.

    Args:
        in_channels (int): Channels of the images.
        embed_dims (int): Width of the tokens.
        patch_size (int): Side of a patch in pixels of the image, even.
        hidden_dims (int): Width of the convolutions. Defaults to 64.
    """

    def __init__(
        self, in_channels: int, embed_dims: int, patch_size: int, hidden_dims: int = 64
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, hidden_dims, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden_dims)
        self.conv2 = nn.Conv2d(hidden_dims, hidden_dims, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden_dims)
        self.conv3 = nn.Conv2d(hidden_dims, hidden_dims, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(hidden_dims)
        self.projection = nn.Conv2d(hidden_dims, embed_dims, patch_size // 2, patch_size // 2)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images ``(B, 3, H, W)`` to tokens ``(B, N, C)`` and their grid ``(h, w)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        x = self.projection(x)
        return x.flatten(2).transpose(1, 2), tuple(x.shape[2:])


class ResidualScale(nn.Module):
    """Multiply a residual branch by a constant."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@MODELS.register_module()
@quantizable
class LVViT(VisionTransformer):
    """LV-ViT, "All Tokens Matter" (arXiv 2104.10858), with what :class:`VisionTransformer` has.

    A convolutional stem and residual branches scaled by ``1 / skip_lam``; its head is
    :class:`TokenLabelHead`.

    Args:
        arch (str | dict): ``'lv-vit-t'``, ``'lv-vit-s'`` or ``'lv-vit-m'``, or a dict as for
            :class:`VisionTransformer` with ``skip_lam``.
        patch_size (int): Side of a patch in pixels. Defaults to 16.
        in_channels (int): Channels of the images. Defaults to 3.
        norm_cfg (dict): Normalisation. Defaults to LayerNorm with eps 1e-5.
        **kwargs: Other arguments of :class:`VisionTransformer`, without ``stride``.
    """

    arch_zoo = {
        f'lv-vit-{name}': {
            'embed_dims': width,
            'num_layers': depth,
            'num_heads': heads,
            'feedforward_channels': 3 * width,
            'qkv_bias': False,
            'skip_lam': skip_lam,
        }
        for name, width, depth, heads, skip_lam in (
            ('t', 240, 12, 4, 1.0),
            ('s', 384, 16, 6, 2.0),
            ('m', 512, 20, 8, 2.0),
        )
    }

    def __init__(
        self,
        arch: str | dict = 'lv-vit-s',
        patch_size: int = 16,
        in_channels: int = 3,
        norm_cfg: dict = dict(type='LN', eps=1e-5),
        **kwargs: Any,
    ) -> None:
        if given := sorted({'stride', 'patch_cfg'} & set(kwargs)):
            raise ValueError(f'The patches of LVViT do not overlap, {given} cannot be set')
        super().__init__(
            arch, patch_size=patch_size, in_channels=in_channels, norm_cfg=norm_cfg, **kwargs
        )
        self.patch_embed = ConvStem(in_channels, self.embed_dims, patch_size)
        skip_lam = self.arch_settings.get('skip_lam', 1.0)
        if skip_lam != 1:
            for layer in self.layers:
                layer.attn.gamma1 = ResidualScale(1 / skip_lam)
                layer.ffn.gamma2 = ResidualScale(1 / skip_lam)
