from collections.abc import Sequence
from typing import Any

import torch
from mmengine.utils import to_2tuple
from mmpretrain.models.backbones import SwinTransformer
from torch import Tensor

from vitdown.registry import MODELS

from ..layers import FusedWindowMSA
from ..layers.window_attention import resize_bias_table
from ..option_checks import check_flags, check_integers, check_numbers, refuse_token_fusion
from ..pretrained import load_pretrained
from ..quantization import quantizable
from .stvit_stages import CompressedStage, ConvStem, DumbbellStage
from .swin_transformer import init_linear_layers

KEY_MODES = ('window', 'released_cls')


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
            ``recover=False`` they differ by small maps alone. ``'window'`` pads maps to whole
            windows. ``'released_cls'`` shrinks the windows of a stage to its map at ``img_size``
            where that is smaller, as Swin's classifiers do; smaller inputs are refused. Defaults
            to ``'window'``.
        key_windows (Sequence[int], optional): See :class:`DumbbellStage`; with ``recover=False``
            one for the first generation layer, as the second sees the image. Defaults to (14, 21),
            and to (14, ).
        recover_key_window (int, optional): See :class:`DumbbellStage`. Defaults to 27.
        semantic_shortcut (bool, optional): Residual in the first generation layer; always with
            ``recover=False``. Defaults to True, and to False in ``'released_cls'``.
        use_global_center (bool): Learned global centres; they fix the input size. Defaults to
            False.
        relative_pos (bool): Relative position bias among semantic tokens; fixes the input size, so
            it needs ``'released_cls'``. Defaults to False.
        conv_pos (bool): Position convolution in the first generation layer. Defaults to False.
        pad_mask (str | bool): ``'exact'``, ``'official'`` (what released detectors need) or False,
            see :class:`SemanticLayout`; ``'released_cls'`` has none but ``'exact'``. Defaults to
            ``'exact'``.
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
        token_fusion (None): Refused.
        init_cfg (dict, optional): ``dict(type='Pretrained', checkpoint=..., source=...)`` loads
            weights, see :func:`load_pretrained`; output norms may be missing. None initialises as
            the paper.

    Raises:
        ValueError: For settings out of range, that do not fit each other or would have no effect.
            In the forward pass: for inputs smaller than the windows of ``'released_cls'``.

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
        key_windows: Sequence[int] | None = None,
        recover_key_window: int | None = None,
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
        token_fusion: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        refuse_token_fusion(self, token_fusion, 'attends in windows')
        if isinstance(arch, str) and arch.lower() not in self.arch_zoo:
            raise ValueError(
                f'Unknown arch {arch!r}; choose from {sorted(self.arch_zoo)} or give a dict'
            )
        _check_modes(
            recover,
            key_mode,
            key_windows=key_windows,
            recover_key_window=recover_key_window,
            semantic_shortcut=semantic_shortcut,
            conv_pos=conv_pos or None,
            num_base=num_base,
            relative_pos=relative_pos,
            pad_mask=pad_mask,
        )
        check_flags(
            use_global_center=use_global_center,
            relative_pos=relative_pos,
            conv_pos=conv_pos,
            norm_eval=norm_eval,
            with_cp=with_cp,
        )
        if semantic_shortcut is not None:
            check_flags(semantic_shortcut=semantic_shortcut)
        check_numbers(high=1, drop_path_rate=drop_path_rate)
        check_numbers(layer_scale_init_value=layer_scale_init_value)
        if not isinstance(stem_norm_cfg, dict):
            raise ValueError(
                f"stem_norm_cfg must be a dict such as dict(type='BN'), got {stem_norm_cfg!r}"
            )
        if init_cfg is not None and (
            not isinstance(init_cfg, dict) or init_cfg.get('type') != 'Pretrained'
        ):
            raise ValueError(
                "init_cfg must be dict(type='Pretrained', checkpoint=...), or None for the paper's "
                f'initialisation, got {init_cfg!r}'
            )
        windowed = key_mode == 'window'
        if key_windows is None:
            key_windows = (14, 21) if recover else (14,)
        if recover_key_window is None:
            recover_key_window = 27
        if isinstance(arch, dict):
            for name in ('depths', 'num_heads'):
                check_integers(f'arch.{name}', arch.get(name), low=1, sizes=(4,))
        check_integers('img_size', to_2tuple(img_size), low=1, sizes=(2,))
        check_integers('window_size', window_size, low=1)
        self.img_size = to_2tuple(img_size)
        windows = [window_size] * 4
        if not windowed:
            windows = [min(window_size, *size) for size in _stage_sizes(self.img_size)]
        check_integers('num_semantic', num_semantic, low=1, high=windows[2])
        if not recover:
            # Two windows of semantic tokens merge to one, of a single one the half
            alone = not windowed and min(_stage_sizes(self.img_size)[2]) <= windows[2]
            windows[3] = -(-num_semantic // 2) if alone else num_semantic
        check_integers('out_indices', out_indices, low=0, high=3, sizes=(1, 2, 3, 4))
        if len(set(out_indices)) < len(out_indices):
            raise ValueError(f'out_indices {out_indices!r} names a stage twice')
        if num_base is not None:
            check_integers('num_base', num_base, low=1)
        check_integers('frozen_stages', frozen_stages, low=-1, high=3)
        if windowed or not recover:
            check_integers('key_windows', key_windows, low=window_size, sizes=(1 + recover,))
            check_integers('recover_key_window', recover_key_window, low=num_semantic)
        block_cfg = dict(pad_small_map=windowed, attn_cfgs=dict(window_msa=FusedWindowMSA))
        stage_cfgs = [dict(block_cfgs=block_cfg, window_size=side) for side in windows]
        stage_cfgs[2] = dict(depth=0)  # The third stage is ours.
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
            stage_cfgs=stage_cfgs,
            init_cfg=init_cfg,
        )
        self.recover = recover
        self.windows = windows if not windowed else None
        self.patch_embed = ConvStem(self.embed_dims, in_channels, stem_norm_cfg)
        self.patch_resolution = tuple(-(-size // ConvStem.stride) for size in self.img_size)
        first, depth = sum(self.depths[:2]), self.depths[2]
        rates = torch.linspace(0, drop_path_rate, sum(self.depths)).tolist()
        sizes = (4 * self.embed_dims, depth, self.num_heads[2])
        options: dict[str, Any] = dict(
            input_size=tuple(-(-size // 4) for size in self.patch_resolution),
            window_size=windows[2],
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
            self.stages[2] = DumbbellStage(
                *sizes,
                key_mode=key_mode,
                key_windows=key_windows,
                recover_key_window=recover_key_window,
                shortcut=windowed if semantic_shortcut is None else semantic_shortcut,
                conv_pos=conv_pos,
                **options,
            )
        else:
            num_base = (2 if depth == 6 else depth // 2) if num_base is None else num_base
            self.stages[2] = CompressedStage(
                *sizes, num_base=num_base, key_window=key_windows[0], **options
            )

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for decay of the learning rate by layer; see mmpretrain's."""
        if param_name.endswith('.global_center'):
            # Enters the second generation layer
            index = 2 if self.recover else self.stages[2].num_base + 1
            param_name = param_name.replace('global_center', f'blocks.{index}')
        return super().get_layer_depth(param_name, prefix)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images ``(B, 3, H, W)`` to the maps ``(B, C, h, w)`` of the stages ``out_indices``."""
        if self.windows is not None:
            self._check_size((x.shape[2], x.shape[3]))
        return super().forward(x)

    def _check_size(self, size: tuple[int, int]) -> None:
        """Refuse inputs whose map in a stage is smaller than the stage's windows."""
        assert self.windows is not None
        for i, (stage, side) in enumerate(zip(_stage_sizes(size), self.windows)):
            if i == 3 and not self.recover:
                stage = self.stages[2].layout(_stage_sizes(size)[2]).semantic_size
                stage = (-(-stage[0] // 2), -(-stage[1] // 2))
            if min(stage) < side:
                raise ValueError(
                    f'Stage {i + 1} has windows of {side}x{side}, an input of '
                    f'{size[0]}x{size[1]} gives it a map of {stage[0]}x{stage[1]}: set img_size to '
                    'the input size, which shrinks them (weights trained with larger ones load), '
                    "or use key_mode='window'"
                )

    def _prepare_relative_position_bias_table(
        self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Fit the tables of a checkpoint with other windows; called before its weights load."""
        for name, own in self.state_dict().items():
            key = prefix + name
            table = state_dict.get(key)
            if table is None or not name.endswith('relative_position_bias_table'):
                continue
            if table.shape[1:] == own.shape[1:] and len(table) != len(own):
                state_dict[key] = resize_bias_table(table, len(own))
                index = name.replace('bias_table', 'index')
                if prefix + index in state_dict:
                    state_dict[prefix + index] = self.get_buffer(index)

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
        init_linear_layers(self)


def _stage_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes of the four stages' maps of image tokens for an input size."""
    strides = [ConvStem.stride * 2**i for i in range(4)]
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]


def _check_modes(
    recover: bool, key_mode: str, relative_pos: bool, pad_mask: str | bool, **given: object
) -> None:
    """Refuse options that do not fit the kind of the third stage, or are given without effect."""
    if not isinstance(recover, bool):
        raise ValueError(f'recover must be True or False, got {recover!r}')
    if key_mode not in KEY_MODES:
        raise ValueError(f'key_mode must be one of {KEY_MODES}, got {key_mode!r}')
    if key_mode == 'window' and relative_pos:
        raise ValueError("relative_pos fixes the input size; it needs key_mode='released_cls'")
    released = recover and key_mode == 'released_cls'
    if released and pad_mask != 'exact':
        raise ValueError(
            f"key_mode='released_cls' has no padding among its keys: leave out "
            f"pad_mask={pad_mask!r}, or use key_mode='window', which released detectors have"
        )
    used = {'num_base', 'key_windows'} if not recover else {'semantic_shortcut', 'conv_pos'}
    if recover and not released:
        used |= {'key_windows', 'recover_key_window'}
    for name, value in given.items():
        if value is not None and name not in used:
            raise ValueError(
                f'{name} has no effect with recover={recover} and key_mode={key_mode!r}: leave it '
                'out'
            )
