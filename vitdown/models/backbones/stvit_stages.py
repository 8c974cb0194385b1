from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, ModuleList
from mmengine.model.weight_init import trunc_normal_
from mmpretrain.models.backbones.swin_transformer import SwinBlock, SwinBlockSequence
from torch import Tensor, nn

from ..layers import (
    SemanticEncoderLayer,
    SemanticLayout,
    SemanticTokenGenerator,
    SemanticTokenRecovery,
)

DUMBBELL = 6  # layers in a unit


class ConvStem(BaseModule):
    """Two 3x3 convolutions of stride 2, each with norm and Hardswish, in place of patches.

    Images are padded with zeros at the bottom and the right to multiples of 4.

    Args:
        embed_dims (int): Output channels C; the first convolution has half of them.
        in_channels (int): Input channels. Defaults to 3.
        norm_cfg (dict): Norm after each convolution. Defaults to ``dict(type='BN')``.
    """

    stride = 4

    def __init__(
        self, embed_dims: int, in_channels: int = 3, norm_cfg: dict = dict(type='BN')
    ) -> None:
        super().__init__()
        widths = (in_channels, embed_dims // 2, embed_dims)
        self.projection = nn.Sequential(
            *(
                nn.Sequential(
                    OrderedDict(
                        conv=nn.Conv2d(ins, outs, 3, stride=2, padding=1, bias=False),
                        bn=build_norm_layer(norm_cfg, outs)[1],
                        act=nn.Hardswish(),
                    )
                )
                for ins, outs in zip(widths, widths[1:])
            )
        )

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images ``(B, 3, H, W)`` to tokens ``(B, N, C)`` and their map's size ``(h, w)``."""
        bottom, right = (-size % self.stride for size in x.shape[2:])
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        x = self.projection(x)
        # Not flatten(2).transpose(1, 2): of a single image, the strides that it leads to make
        # PyTorch (2.11) compute a wrong gradient of batch norms in eval mode.
        return x.permute(0, 2, 3, 1).flatten(1, 2), tuple(x.shape[2:])


class SemanticStage(SwinBlockSequence):
    """A Swin stage with layers on semantic tokens; base of those with and without recovery.

    Args:
        embed_dims (int): Channels C.
        depth (int): Number of layers.
        num_heads (int): Number of attention heads.
        input_size (tuple[int, int]): Usual size of the map, for parameters that depend on it.
        window_size (int): Side of a window. Defaults to 7.
        num_semantic (int): Side of a window in semantic tokens. Defaults to 3.
        pad_mask (str | bool): See :class:`SemanticLayout`.
        relative_pos (bool): Relative position bias among semantic tokens. Defaults to False.
        use_global_center (bool): Learned centres, added in the second generation layer of the
            first unit. Defaults to False.
        drop_paths (Sequence[float]): Drop path rate of each layer.
        layer_scale_init_value (float): Initial layer scale of semantic layers. Defaults to 1e-5.
        downsample (bool): Whether patch merging follows. Defaults to True.
        with_cp (bool): Recompute layers in the backward pass. Defaults to False.
        block_cfg (dict): Further arguments of the Swin blocks.
    """

    def __init__(
        self,
        embed_dims: int,
        depth: int,
        num_heads: int,
        input_size: tuple[int, int],
        window_size: int = 7,
        num_semantic: int = 3,
        pad_mask: str | bool = 'exact',
        relative_pos: bool = False,
        use_global_center: bool = False,
        drop_paths: Sequence[float] = (),
        layer_scale_init_value: float = 1e-5,
        downsample: bool = True,
        with_cp: bool = False,
        block_cfg: dict = dict(),
    ) -> None:
        super().__init__(embed_dims, 0, num_heads, window_size, downsample=downsample)
        self.depth = depth
        self.num_heads = num_heads
        self.window_size = window_size
        self.num_semantic = num_semantic
        self.pad_mask = pad_mask
        self.relative_pos = relative_pos
        self.drop_paths = list(drop_paths) or [0.0] * depth
        self.layer_scale_init_value = layer_scale_init_value
        self.with_cp = with_cp
        self.block_cfg = block_cfg
        self.semantic_size = self.layout(input_size).semantic_size
        if relative_pos and self.semantic_size[0] != self.semantic_size[1]:
            raise ValueError(
                f'relative_pos needs a square semantic map, img_size gives {self.semantic_size}'
            )
        self.global_center = None
        if use_global_center:
            num_tokens = self.semantic_size[0] * self.semantic_size[1]
            centers = trunc_normal_(torch.empty(1, num_tokens, embed_dims), std=0.02)
            self.global_center = nn.Parameter(centers)
        self.blocks = ModuleList(self.build_layer(i) for i in range(depth))

    def build_layer(self, index: int) -> nn.Module:
        """The layer at an index of the stage."""
        raise NotImplementedError

    def swin_layer(self, index: int, shift: bool) -> SwinBlock:
        return SwinBlock(
            self.embed_dims,
            self.num_heads,
            self.window_size,
            shift=shift,
            drop_path=self.drop_paths[index],
            **self.block_cfg,
        )

    def semantic_layer(self, layer: type, index: int, **kwargs: Any) -> nn.Module:
        return layer(
            self.embed_dims,
            self.num_heads,
            4 * self.embed_dims,
            drop_path_rate=self.drop_paths[index],
            layer_scale_init_value=self.layer_scale_init_value,
            norm_cfg=dict(type='LN'),
            **kwargs,
        )

    def self_attention_layer(self, index: int, local: bool) -> nn.Module:
        side = self.num_semantic if local else self.semantic_size[0]
        return self.semantic_layer(
            SemanticEncoderLayer,
            index,
            local=local,
            relative_side=side if self.relative_pos else None,
        )

    def layout(self, size: tuple[int, int]) -> SemanticLayout:
        """Geometry of a map of image tokens."""
        return SemanticLayout(*size, self.window_size, self.num_semantic, self.pad_mask)

    def run(self, layer: nn.Module, x: Tensor, *args: Any) -> Tensor:
        """Call a layer, to be recomputed in the backward pass if ``with_cp``."""
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(layer, x, *args, use_reentrant=False)
        return layer(x, *args)

    def center(self, layout: SemanticLayout) -> Tensor | None:
        if self.global_center is not None and layout.semantic_size != self.semantic_size:
            raise ValueError(
                f'The global centres are for a semantic map of {self.semantic_size}, the input has '
                f'{layout.semantic_size}; set img_size to the input size or use_global_center=False'
            )
        return self.global_center

    def encode(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Run the layers on tokens ``(B, N, C)`` of a map of that size."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, in_shape: tuple[int, int], do_downsample: bool = True
    ) -> tuple[Tensor, tuple[int, int]]:
        """Tokens ``(B, N, C)`` of a map ``in_shape`` to the stage's tokens and their map's size."""
        x, size = self.encode(x, in_shape)
        if self.downsample is not None and do_downsample:
            x, size = self.downsample(x, size)
        return x, size


class DumbbellStage(SemanticStage):
    """Units of six layers that compress image tokens to semantic tokens and recover them.

    A unit is a Swin block (never shifted), two generation layers, self-attention inside windows and
    among all semantic tokens, and recovery; the image tokens that the Swin block returns wait for
    the recovery (STViT-R).

    Args:
        *args: See :class:`SemanticStage`; ``depth`` must be a multiple of 6.
        key_mode (str): ``'window'``: each layer sees the surroundings of a window.
            ``'released_cls'``: as in the released classifiers, the first generation layer sees the
            window enlarged by 3 on each side within the map, and the pooled tokens; the other
            layers see the whole image. On the released 14x14 map this is the released code's
            10x10 patch; that has no rule for other maps.
        key_windows (Sequence[int]): With ``'window'``, sides of the key windows of the two
            generation layers. Defaults to (14, 21).
        recover_key_window (int): With ``'window'``, side of the neighbourhood of the recovery in
            semantic tokens. Defaults to 27.
        shortcut (bool): Residual in the first generation layer. Defaults to True.
        conv_pos (bool): Position convolution in the first generation layer. Defaults to False.
        **kwargs: See :class:`SemanticStage`.
    """

    def __init__(
        self,
        *args: Any,
        key_mode: str = 'window',
        key_windows: Sequence[int] = (14, 21),
        recover_key_window: int = 27,
        shortcut: bool = True,
        conv_pos: bool = False,
        **kwargs: Any,
    ) -> None:
        self.released = key_mode == 'released_cls'
        self.key_windows = key_windows
        self.recover_key_window = recover_key_window
        self.shortcut = shortcut
        self.conv_pos = conv_pos
        super().__init__(*args, **kwargs)
        if self.depth % DUMBBELL:
            raise ValueError(
                f'The third stage consists of units of {DUMBBELL} layers: its depth {self.depth} '
                f'must be a multiple of {DUMBBELL}'
            )

    def build_layer(self, index: int) -> nn.Module:
        position = index % DUMBBELL
        if position == 0:
            return self.swin_layer(index, shift=False)
        if position == 1:
            return self.semantic_layer(
                SemanticTokenGenerator,
                index,
                reach=self.window_size + 6 if self.released else self.key_windows[0],
                with_own_keys=self.released,
                shortcut=self.shortcut,
                conv_pos=self.conv_pos,
            )
        if position == 2:
            return self.semantic_layer(
                SemanticTokenGenerator,
                index,
                reach=None if self.released else self.key_windows[1],
                with_own_keys=self.released,
            )
        if position in (3, 4):
            return self.self_attention_layer(index, local=position == 3)
        reach = None if self.released else self.recover_key_window
        return self.semantic_layer(SemanticTokenRecovery, index, reach=reach)

    def encode(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        layout = self.layout(size)
        center = self.center(layout)
        blocks = list(self.blocks)
        for start in range(0, self.depth, DUMBBELL):
            swin, generate, refine, local, across, recover = blocks[start : start + DUMBBELL]
            x = self.run(swin, x, size)
            semantic = self.run(generate, layout.pool(x), x, layout)
            semantic = self.run(refine, semantic, x, layout, None if start else center)
            semantic = self.run(across, self.run(local, semantic, layout), layout)
            x = self.run(recover, x, semantic, layout)
        return x, size


class CompressedStage(SemanticStage):
    """Swin blocks, two generation layers, then layers on semantic tokens alone (STViT).

    The released code does not contain it; the layout was found by matching the paper's FLOPs. The
    second generation layer sees all image tokens and the semantic tokens. Returns the semantic map.

    Args:
        *args: See :class:`SemanticStage`.
        num_base (int): Number of Swin blocks before the semantic tokens.
        key_window (int): Side of the key windows of the first generation layer. Defaults to 14.
        **kwargs: See :class:`SemanticStage`.
    """

    def __init__(self, *args: Any, num_base: int, key_window: int = 14, **kwargs: Any) -> None:
        self.num_base = num_base
        self.key_window = key_window
        super().__init__(*args, **kwargs)
        if not 1 <= num_base <= self.depth - 2:
            raise ValueError(
                f'num_base={num_base} must leave 2 generation layers of the third stage, which has '
                f'{self.depth} layers'
            )

    def build_layer(self, index: int) -> nn.Module:
        if index < self.num_base:
            return self.swin_layer(index, shift=index % 2 == 1)
        position = index - self.num_base
        if position == 0:
            return self.semantic_layer(SemanticTokenGenerator, index, reach=self.key_window)
        if position == 1:
            return self.semantic_layer(SemanticTokenGenerator, index, with_own_keys=True)
        return self.self_attention_layer(index, local=position % 2 == 0)

    def encode(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        layout = self.layout(size)
        blocks = list(self.blocks)
        for layer in blocks[: self.num_base]:
            x = self.run(layer, x, size)
        generate, refine, *others = blocks[self.num_base :]
        semantic = self.run(generate, layout.pool(x), x, layout)
        semantic = self.run(refine, semantic, x, layout, self.center(layout))
        for layer in others:
            semantic = self.run(layer, semantic, layout)
        return semantic, layout.semantic_size
