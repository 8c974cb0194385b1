from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, ModuleList
from mmengine.model.weight_init import trunc_normal_
from mmengine.utils import to_2tuple
from mmpretrain.models.backbones import SwinTransformer
from mmpretrain.models.backbones.swin_transformer import SwinBlock, SwinBlockSequence
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..layers import (
    FusedWindowMSA,
    SemanticEncoderLayer,
    SemanticLayout,
    SemanticTokenGenerator,
    SemanticTokenRecovery,
)
from ..pretrained import load_pretrained
from ..quantization import quantizable

KEY_MODES = ('window', 'released_cls')
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

    def semantic_layer(self, layer: type, index: int, **kwargs) -> nn.Module:
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

    def run(self, layer: nn.Module, x: Tensor, *args) -> Tensor:
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
            layers see the whole image.
        key_windows (tuple[int, int]): With ``'window'``, sides of the key windows of the two
            generation layers. Defaults to (14, 21).
        recover_key_window (int): With ``'window'``, side of the neighbourhood of the recovery in
            semantic tokens. Defaults to 27.
        shortcut (bool): Residual in the first generation layer. Defaults to True.
        conv_pos (bool): Position convolution in the first generation layer. Defaults to False.
        **kwargs: See :class:`SemanticStage`.
    """

    def __init__(
        self,
        *args,
        key_mode: str = 'window',
        key_windows: tuple[int, int] = (14, 21),
        recover_key_window: int = 27,
        shortcut: bool = True,
        conv_pos: bool = False,
        **kwargs,
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

    def __init__(self, *args, num_base: int, key_window: int = 14, **kwargs) -> None:
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


@MODELS.register_module()
@quantizable
class STViTSwin(SwinTransformer):
    """Swin with semantic tokens in its third stage: STViT-R-Swin, or STViT-Swin.

    "Making Vision Transformers Efficient from A Token Sparsification View" (CVPR 2023). With
    ``recover=True`` the third stage compresses and recovers (Sec. 3.4): a backbone for detection
    and segmentation, with feature maps as Swin's. With ``recover=False`` what follows the third
    stage's first half works on semantic tokens alone (Sec. 3.3): for classification and re-ID; that
    layout is a reconstruction. Other stages are mmpretrain's, on the fused attention kernel.

    Keys and values are projected once a token, windows gather them afterwards; sizes are arguments
    and masks follow from them, so no state is kept between calls and any input size works.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'`` or a dict with ``embed_dims``,
            ``depths`` and ``num_heads`` of four stages.
        img_size (int | tuple[int, int]): Usual input size ``(H, W)``. Defaults to 224.
        recover (bool): Whether to recover image tokens. Defaults to True.
        window_size (int): Side of the windows. Defaults to 7.
        num_semantic (int): Side of a window in semantic tokens. Defaults to 3.
        key_mode (str): ``'window'`` or ``'released_cls'``, see :class:`DumbbellStage`; with
            ``recover=False`` ``'window'`` pads small maps in stages 1 and 2 too. Defaults to
            ``'window'``.
        key_windows (tuple[int, int]): See :class:`DumbbellStage`.
        recover_key_window (int): See :class:`DumbbellStage`.
        semantic_shortcut (bool, optional): Residual in the first generation layer. Defaults to
            True, and to False in ``'released_cls'``.
        use_global_center (bool): Learned global centres; they fix the input size. Defaults to
            False.
        relative_pos (bool): Relative position bias among semantic tokens; fixes the input size, so
            it needs ``'released_cls'``. Defaults to False.
        conv_pos (bool): Position convolution in the first generation layer. Defaults to False.
        pad_mask (str | bool): ``'exact'``, ``'official'`` (what released detectors need) or False,
            see :class:`SemanticLayout`. Defaults to ``'exact'``.
        num_base (int, optional): With ``recover=False``, Swin blocks of the third stage. Defaults
            to 2 of 6 and 9 of 18.
        drop_path_rate (float): Stochastic depth, growing linearly over the layers.
        layer_scale_init_value (float): Of the semantic layers. Defaults to 1e-5.
        out_indices (Sequence[int]): Stages to return, normalised. Defaults to (3, ).
        frozen_stages (int): Stem and stages up to this one do not train. Defaults to -1, none.
        norm_eval (bool): Whether the stem's batch norms keep their statistics. Defaults to False.
        with_cp (bool): Recompute layers in the backward pass to save memory. Defaults to False.
        stem_norm_cfg (dict): Norm of the stem. Defaults to ``dict(type='BN')``.
        norm_cfg (dict): Norm of the outputs. Defaults to ``dict(type='LN')``.
        init_cfg (dict, optional): ``dict(type='Pretrained', checkpoint=..., source=...)`` loads
            weights, see :func:`load_pretrained`; output norms may be missing. None initialises as
            the paper.

    Raises:
        ValueError: For settings that do not fit each other.

    Examples:
        >>> import torch
        >>> from vitdown.models.backbones import STViTSwin
        >>> model = STViTSwin('tiny', out_indices=(0, 1, 2, 3))
        >>> [tuple(x.shape[1:]) for x in model(torch.rand(1, 3, 70, 118))]
        [(96, 18, 30), (192, 9, 15), (384, 5, 8), (768, 3, 4)]
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        recover: bool = True,
        window_size: int = 7,
        num_semantic: int = 3,
        key_mode: str = 'window',
        key_windows: tuple[int, int] = (14, 21),
        recover_key_window: int = 27,
        semantic_shortcut: bool | None = None,
        use_global_center: bool = False,
        relative_pos: bool = False,
        conv_pos: bool = False,
        pad_mask: str | bool = 'exact',
        num_base: int | None = None,
        drop_path_rate: float = 0.1,
        layer_scale_init_value: float = 1e-5,
        out_indices: Sequence[int] = (3,),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        stem_norm_cfg: dict = dict(type='BN'),
        norm_cfg: dict = dict(type='LN'),
        init_cfg: dict | None = None,
    ) -> None:
        if isinstance(arch, str) and arch.lower() not in self.arch_zoo:
            raise ValueError(
                f'Unknown arch {arch!r}; choose from {sorted(self.arch_zoo)} or give a dict'
            )
        if key_mode not in KEY_MODES:
            raise ValueError(f'key_mode must be one of {KEY_MODES}, got {key_mode!r}')
        windowed = key_mode == 'window'
        if windowed and relative_pos:
            raise ValueError("relative_pos fixes the input size; it needs key_mode='released_cls'")
        self.img_size = to_2tuple(img_size)
        block_cfg = dict(pad_small_map=windowed, attn_cfgs=dict(window_msa=FusedWindowMSA))
        stage_cfg = dict(block_cfgs=block_cfg)
        # Without recovery, two windows of semantic tokens merge to one.
        last_cfg = stage_cfg if recover else dict(stage_cfg, window_size=num_semantic)
        super().__init__(
            arch=arch,
            img_size=img_size,
            in_channels=in_channels,
            window_size=window_size,
            drop_path_rate=drop_path_rate,
            out_indices=out_indices,
            with_cp=with_cp,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            norm_cfg=norm_cfg,
            # The third stage is ours.
            stage_cfgs=[stage_cfg, stage_cfg, dict(depth=0), last_cfg],
            init_cfg=init_cfg,
        )
        self.recover = recover
        self.patch_embed = ConvStem(self.embed_dims, in_channels, stem_norm_cfg)
        self.patch_resolution = tuple(-(-size // ConvStem.stride) for size in self.img_size)
        first, depth = sum(self.depths[:2]), self.depths[2]
        rates = torch.linspace(0, drop_path_rate, sum(self.depths)).tolist()
        options = dict(
            input_size=tuple(-(-size // 4) for size in self.patch_resolution),
            window_size=window_size,
            num_semantic=num_semantic,
            pad_mask=pad_mask,
            relative_pos=relative_pos,
            use_global_center=use_global_center,
            drop_paths=rates[first : first + depth],
            layer_scale_init_value=layer_scale_init_value,
            with_cp=with_cp,
            block_cfg=block_cfg,
        )
        if recover:
            stage, extra = (
                DumbbellStage,
                dict(
                    key_mode=key_mode,
                    key_windows=key_windows,
                    recover_key_window=recover_key_window,
                    shortcut=windowed if semantic_shortcut is None else semantic_shortcut,
                    conv_pos=conv_pos,
                ),
            )
        else:
            num_base = (2 if depth == 6 else depth // 2) if num_base is None else num_base
            stage, extra = CompressedStage, dict(num_base=num_base, key_window=key_windows[0])
        self.stages[2] = stage(4 * self.embed_dims, depth, self.num_heads[2], **options, **extra)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for decay of the learning rate by layer; see mmpretrain's."""
        if param_name.endswith('.global_center'):
            # Enters the second generation layer
            index = 2 if self.recover else self.stages[2].num_base + 1
            param_name = param_name.replace('global_center', f'blocks.{index}')
        return super().get_layer_depth(param_name, prefix)

    def train(self, mode: bool = True) -> 'STViTSwin':
        super().train(mode)
        return self

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``, else initialise as the paper."""
        if self.init_cfg and self.init_cfg.get('type') == 'Pretrained':
            options = {k: v for k, v in self.init_cfg.items() if k != 'type'}
            load_pretrained(
                self,
                **options,
                optional=[r'^norm\d\.', r'\.global_center$', r'\.relative_position_index$'],
            )
            return
        super().init_weights()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
