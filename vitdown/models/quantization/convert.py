"""Conversion of models, before any weights are loaded."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmcv.cnn.bricks.transformer import FFN
from mmengine.utils import to_2tuple
from mmpretrain.models.backbones.swin_transformer import SwinBlockSequence
from torch import nn

from ..layers.cross_encoder_layer import CrossEncoderLayer
from .attention import QUANTIZED_ATTENTION, quantize_attention
from .modules import QKRProjection, QuantConv2d, QuantLinear, QuantQKV
from .quantizers import LSQQuantizer, StatsQuantizer, quantizers_of, size_quantizers
from .settings import OFQ

BLOCK_SETTINGS = ('w_bits', 'a_bits', 'w_quant', 'act_granularity')


def quantizable(cls: type[nn.Module]) -> type[nn.Module]:
    """Class decorator of backbones and heads: their constructor takes ``quant_cfg`` besides.

    The complete instance is converted (:func:`convert`) before it leaves the constructor. A
    subclass with a constructor of its own needs the decorator, too.
    """
    init = cls.__init__

    @functools.wraps(init)
    def __init__(
        self: nn.Module, *args: Any, quant_cfg: Mapping | OFQ | None = None, **kwargs: Any
    ) -> None:
        init(self, *args, **kwargs)
        if quant_cfg is None:
            return
        if type(self) is not cls:
            raise TypeError(
                f'{type(self).__name__} extends {cls.__name__} and must not hand quant_cfg on; '
                'decorate it with @quantizable'
            )
        convert(self, quant_cfg)

    cls.__init__ = __init__
    return cls


def convert(
    model: nn.Module, quant_cfg: Mapping | OFQ, run: Callable[[], object] | None = None
) -> nn.Module:
    """Quantize a backbone or a head in place; parameter names stay as they are.

    Attention (vitdown's ``MultiheadAttention``, mmpretrain's ``WindowMSA``), MLPs and other linear
    layers get ``w_bits`` and ``a_bits``, the convolution that sees the image ``edge_bits``; other
    convolutions stay as they are. In attention of other types only the linear layers are
    quantized. A model without attention and MLP is a head: its linear layers get ``edge_bits``.

    Args:
        model (nn.Module): The model.
        quant_cfg (Mapping | OFQ): ``dict(type='OFQ', ...)``, see :class:`OFQ`.
        run (Callable, optional): Runs the model on an input of the usual size, which tells how
            many tokens there are. Defaults to a black image of the model's ``img_size``.

    Returns:
        nn.Module: ``model``.

    Raises:
        ValueError: If the settings can't apply to this model.
    """
    cfg = OFQ.from_cfg(quant_cfg)
    _check_composition(model, cfg)
    names = [name for name, _ in model.named_modules()]
    if unused := cfg.unused_patterns(names):
        raise ValueError(f'quant_cfg: no module of {type(model).__name__} is called {unused}')
    _Converter(model, cfg).run()
    for name, module in model.named_modules():
        if isinstance(module, LSQQuantizer):
            module.name = name
    positional = [q for q in quantizers_of(model) if q.per_token or q.per_pixel]
    if positional:
        size_quantizers(model, run or (lambda: _forward_black_image(model)))
        _remember_grid(model, positional)
        _check_image_size(model)
    return model


def _check_composition(model: nn.Module, cfg: OFQ) -> None:
    granularities = {cfg.act_granularity}
    granularities |= {v.get('act_granularity', 'tensor') for v in cfg.overrides.values()}
    if getattr(model, 'token_fusion', None) is not None and 'token' in granularities:
        raise ValueError(
            "act_granularity='token' can't follow tokens that token_fusion moves and fuses; set "
            "quant_cfg.act_granularity='tensor'"
        )


def _forward_black_image(model: nn.Module) -> None:
    size = getattr(model, 'img_size', None)
    if size is None:
        raise ValueError(
            f'{type(model).__name__} has no img_size, which steps per token depend on; set '
            "quant_cfg.act_granularity='tensor'"
        )
    parameter = next(model.parameters())
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    shape = (1, channels, *to_2tuple(size))
    image = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
    side_information = {}
    if getattr(model, 'sie', None) is not None:
        side_information = dict(camera_ids=[0], view_ids=[0])
    model(image, **side_information)


def _remember_grid(model: nn.Module, quantizers: list[LSQQuantizer]) -> None:
    """Tell quantizers with a step a token where the patches lie, to resize steps on load."""
    grid = getattr(model, 'patch_resolution', None)
    if grid is None:
        return
    patches = math.prod(grid)
    numbers = (patches, patches + getattr(model, 'num_extra_tokens', 0))
    for quantizer in quantizers:
        positions = quantizer.step.numel() // quantizer.steps_per_position
        if quantizer.per_token and quantizer.columns is None and positions in numbers:
            quantizer.grid = tuple(grid)


def _check_image_size(model: nn.Module) -> None:
    """Let a model refuse images of another size, whose tokens may even be as many."""
    size = getattr(model, 'img_size', None)
    if size is not None:
        check = functools.partial(_refuse_other_sizes, type(model).__name__, to_2tuple(size))
        getattr(model, 'patch_embed', model).register_forward_pre_hook(check)


def _refuse_other_sizes(name: str, size: tuple[int, int], _: nn.Module, args: tuple) -> None:
    found = tuple(args[0].shape[-2:])
    if found != tuple(size):
        built, got = ('x'.join(map(str, sides)) for sides in (size, found))
        raise ValueError(
            f"quant_cfg.act_granularity='token': the {name} was built for {built} pixels and got "
            f'{got}. Build it with the img_size of its inputs, or set '
            "quant_cfg.act_granularity='tensor'"
        )


def _token_columns(model: nn.Module) -> dict[int, int]:
    """Width of the token map that each MLP and reduction layer of a Swin works on, by id.

    Windows move over these tokens, so that a step belongs to a column, not to a token.
    """
    columns: dict[int, int] = {}
    stages = [m for m in model.modules() if isinstance(m, SwinBlockSequence)]
    if not stages:
        return columns
    width = model.patch_resolution[1]
    for stage in stages:
        for module in stage.blocks.modules():
            if isinstance(module, FFN):
                columns.update({id(m): width for m in module.modules()})
        if stage.downsample is not None:
            width = (width + 1) // 2
            columns[id(stage.downsample.reduction)] = width
    return columns


def _layers_after_activation(model: nn.Module) -> set[int]:
    """Ids of the linear layers whose inputs come from an activation function."""
    layers: set[int] = set()
    for ffn in model.modules():
        if isinstance(ffn, FFN):
            linear = [m for m in ffn.layers.modules() if isinstance(m, nn.Linear)]
            layers.update(id(m) for m in linear[1:])
    return layers


def _is_per_token(cfg: OFQ) -> bool:
    return cfg.a_bits is not None and cfg.act_granularity == 'token'


class _Converter:
    """Walks over a model and replaces its layers."""

    def __init__(self, model: nn.Module, cfg: OFQ) -> None:
        self.model = model
        self.cfg = cfg
        self.columns = _token_columns(model)
        self.after_activation = _layers_after_activation(model)
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        self.image_conv = next((m for m in convolutions if m.in_channels <= 4), None)
        mlp = any(isinstance(m, FFN) for m in model.modules())
        attention = any(type(m) in QUANTIZED_ATTENTION for m in model.modules())
        self.is_head = not (mlp or attention or convolutions)
        other_attention = any(hasattr(m, 'num_heads') for m in model.modules())
        if cfg.qkr and other_attention and not attention:
            raise ValueError(
                f'The attention of {type(model).__name__} has no query-key reparametrisation; set '
                'quant_cfg.qkr=False'
            )
        # Overrides that meant something, (pattern, setting)
        self.used: set[tuple[str, str]] = set()

    def run(self) -> None:
        self._convert_children(self.model, '')
        given = {(p, key) for p, values in self.cfg.overrides.items() for key in values}
        for pattern, key in sorted(given - self.used):
            raise ValueError(
                f'quant_cfg.overrides[{pattern!r}]: {key} means nothing there. Patch embedding and '
                'classifiers have edge_bits, qkr belongs to attention, other linear layers have '
                'w_bits, a_bits, w_quant and act_granularity'
            )

    def _settings(self, name: str, *keys: str) -> OFQ:
        """Settings for the module of that name, which depends on those keys."""
        self.used.update((p, key) for p in self.cfg.patterns_at(name) for key in keys)
        return self.cfg.at(name)

    def _convert_children(self, parent: nn.Module, prefix: str) -> None:
        for child_name, child in list(parent.named_children()):
            name = f'{prefix}{child_name}'
            if self.cfg.skips(name):
                continue
            if type(child) in QUANTIZED_ATTENTION:
                cfg = self.cfg.at(f'{name}.qkv')
                if isinstance(parent, CrossEncoderLayer) and (cfg.qkr or _is_per_token(cfg)):
                    raise ValueError(
                        f'{type(self.model).__name__} has attention between two sets of tokens, '
                        'which neither query-key reparametrisation nor steps per token fit; set '
                        "quant_cfg.qkr=False and quant_cfg.act_granularity='tensor'"
                    )
                self._convert_attention(child, name)
            elif isinstance(child, nn.Linear):
                setattr(parent, child_name, self._linear(child, name))
            elif child is self.image_conv:
                setattr(parent, child_name, self._image_conv(child, name))
            else:
                self._convert_children(child, f'{name}.')

    def _linear(self, linear: nn.Linear, name: str) -> nn.Module:
        if self.is_head:
            return self._head_linear(linear, name)
        cfg = self._settings(name, *BLOCK_SETTINGS)
        if cfg.w_bits is None and cfg.a_bits is None:
            return linear
        signed = id(linear) not in self.after_activation and not name.endswith('.fc2')
        input_quant = self._activation(cfg, linear.in_features, signed=signed, shifts=True)
        if cfg.a_bits is not None and cfg.act_granularity == 'token':
            input_quant.columns = self.columns.get(id(linear))
        return QuantLinear(linear, self._weight(cfg, linear.out_features), input_quant)

    def _head_linear(self, linear: nn.Linear, name: str) -> nn.Module:
        cfg = self._settings(name, 'edge_bits')
        if cfg.edge_bits is None:
            return linear
        return QuantLinear(
            linear,
            LSQQuantizer(cfg.edge_bits, (-1, 1), linear.out_features),
            LSQQuantizer(cfg.edge_bits, (-1,), 1, shift_view=(linear.in_features,)),
            is_edge=True,
        )

    def _image_conv(self, conv: nn.Conv2d, name: str) -> nn.Module:
        cfg = self._settings(name, 'edge_bits', 'act_granularity')
        if cfg.edge_bits is None:
            return conv
        shift_view = () if cfg.act_granularity == 'token' else (conv.in_channels, 1, 1)
        return QuantConv2d(
            conv,
            LSQQuantizer(cfg.edge_bits, (-1, 1, 1, 1), conv.out_channels),
            LSQQuantizer(
                cfg.edge_bits,
                (-1, 1, 1),
                conv.in_channels,
                signed=None,
                init_factor=2.0,
                shift_view=shift_view,
            ),
        )

    def _convert_attention(self, attn: nn.Module, name: str) -> None:
        proj = attn.proj
        if not self.cfg.skips(f'{name}.proj'):
            proj = self._linear(attn.proj, f'{name}.proj')
        cfg = self._settings(f'{name}.qkv', *BLOCK_SETTINGS, 'qkr')
        unquantized = cfg.w_bits is None and cfg.a_bits is None
        if unquantized or self.cfg.skips(f'{name}.qkv'):
            attn.proj = proj
            return
        dims, heads = attn.embed_dims, attn.num_heads
        sizes = getattr(attn, 'part_sizes', (dims, dims, dims))
        input_quant = self._activation(cfg, dims, shifts=True)
        value_quant = self._activation(cfg, sizes[2], shifts=True, channel=True)
        if cfg.qkr:
            qkv = QKRProjection(
                attn.qkv,
                heads,
                sizes,
                self._weight(cfg, sizes[2]),
                self._weight(cfg, heads * dims),
                input_quant,
                self._activation(cfg, dims, shifts=True, heads=heads),
                value_quant,
            )
        else:
            qkv = QuantQKV(
                attn.qkv,
                heads,
                sizes,
                self._weight(cfg, sum(sizes)),
                input_quant,
                self._activation(cfg, sizes[0], shifts=True),
                self._activation(cfg, sizes[1], shifts=True),
                value_quant,
            )
        granularity = 'token' if cfg.act_granularity == 'token' else 'tensor'
        prob_quant = self._activation(cfg, None, signed=False, granularity=granularity)
        quantize_attention(attn, qkv, proj, prob_quant)

    def _weight(self, cfg: OFQ, rows: int) -> nn.Module:
        if cfg.w_bits is None:
            return nn.Identity()
        if cfg.w_quant == 'statsq':
            return StatsQuantizer(cfg.w_bits)
        return LSQQuantizer(cfg.w_bits, (-1, 1), rows)

    def _activation(
        self,
        cfg: OFQ,
        dims: int | None,
        signed: bool = True,
        shifts: bool = False,
        channel: bool = False,
        heads: int | None = None,
        granularity: str | None = None,
    ) -> nn.Module:
        """Quantizer of ``(..., N, dims)``, or of ``(..., N, heads, dims)``."""
        if cfg.a_bits is None:
            return nn.Identity()
        granularity = granularity or cfg.act_granularity
        if granularity == 'token' and channel:
            granularity = 'channel'
        shape: tuple[int, ...] = () if dims is None else (dims,)
        if heads is not None:
            shape = (heads, *shape)
        view: tuple[int, ...] = (-1,)
        number: int | None = 1
        if granularity == 'channel':
            view, number = (*shape[:-1], -1), math.prod(shape)
        elif granularity == 'token':
            view, number = (-1, 1) if heads is None else (-1, heads, 1), None
        shift_view = shape if shifts else None
        return LSQQuantizer(cfg.a_bits, view, number, signed=signed, shift_view=shift_view)
