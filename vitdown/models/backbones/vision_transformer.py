import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint as cp
from mmengine.model import ModuleList
from mmengine.model.weight_init import trunc_normal_
from mmengine.utils import to_2tuple
from mmpretrain.models.backbones import VisionTransformer as MMPretrainVisionTransformer
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..layers import (
    SideInformationEmbedding,
    TransformerEncoderLayer,
    infer_grid,
    resize_pos_embed,
)
from ..pretrained import load_pretrained
from ..quantization import quantizable
from ..token_fusion import FusionState, check_r


@dataclass
class TokenFeatures:
    """What a plain ViT computes beyond its output tuple.

    With token fusion fewer tokens leave a layer than enter it: T of them enter the first layer
    (the class token and one a patch), T' leave the last one and are ``tokens``. The class token
    stays at index 0, the others are in no order; ``source`` leads from patches to tokens, e.g.
    ``feats.tokens.take_along_dim(feats.source[..., None], dim=1)`` is ``(B, T, C)`` in the order
    of the patch grid, and ``torch.zeros_like(feats.sizes).scatter_add(1, feats.source, scores)``
    adds up scores ``(B, T)`` of the input tokens for each token left. Without token fusion
    T' = T, and sizes and sources are None.

    Attributes:
        tokens (Tensor): ``(B, T', C)`` after the last layer, before the final norm; the class
            token is at index 0.
        normed_tokens (Tensor): ``tokens`` after the final norm (the same tensor without one).
        last_layer_input (Tensor): ``(B, T'', C)`` tokens that enter the last layer.
        patch_resolution (tuple[int, int]): Grid ``(h, w)`` of the patch tokens.
        attentions (tuple, optional): Head-averaged softmax attention of each layer,
            ``(B, T, T)``, first layer first; rows sum to 1. Or its factors, see
            :meth:`VisionTransformer.forward_tokens`. With token fusion, too, between the T tokens
            that entered the first layer.
        pair_tokens (Tensor, optional): ``(B, T', C)`` of the pair-wise cross-attention stream,
            before the final norm.
        normed_pair_tokens (Tensor, optional): ``pair_tokens`` after the final norm.
        sizes (Tensor, optional): ``(B, T')`` float32, number of input tokens in each of
            ``tokens``.
        source (Tensor, optional): ``(B, T)`` int64, index in ``tokens`` of the token that each
            input token is part of; 0 for the class token.
        last_layer_sizes (Tensor, optional): ``(B, T'')``, ``sizes`` of ``last_layer_input``.
        last_layer_source (Tensor, optional): ``(B, T)``, ``source`` of ``last_layer_input``.
    """

    tokens: Tensor
    normed_tokens: Tensor
    last_layer_input: Tensor
    patch_resolution: tuple[int, int]
    attentions: tuple[Tensor, ...] | tuple[tuple[Tensor, Tensor], ...] | None = None
    pair_tokens: Tensor | None = None
    normed_pair_tokens: Tensor | None = None
    sizes: Tensor | None = None
    source: Tensor | None = None
    last_layer_sizes: Tensor | None = None
    last_layer_source: Tensor | None = None


class _FusionOverrides(threading.local):
    """What :meth:`VisionTransformer.override_fusion` has set, by backbone, in each thread."""

    def __init__(self) -> None:
        self.r: dict[nn.Module, int | float] = {}


# Not on the backbone, since it could be neither copied nor pickled then; and no ContextVar, since
# torch.compile can't trace those.
_OVERRIDES = _FusionOverrides()


@MODELS.register_module()
@quantizable
class VisionTransformer(MMPretrainVisionTransformer):
    """Plain pre-norm ViT / DeiT, the backbone that vitdown's methods share.

    mmpretrain's ``VisionTransformer`` (same parameter names, so its checkpoints load), with
    rectangular inputs, overlapping patches, side information, gradient checkpointing and
    :meth:`forward_tokens`. Architectures besides mmpretrain's: ``'vit-base'`` and ``'vit-small'``
    (the early timm model: 8 layers, MLP ratio 3, no qkv bias, attention scale 768 ** -0.5), as in
    TransReID.

    Args:
        arch (str | dict): Name, or a dict with ``embed_dims``, ``num_layers``, ``num_heads``,
            ``feedforward_channels`` and optionally ``qkv_bias`` and ``qk_scale``.
        img_size (int | tuple[int, int]): Usual input size ``(H, W)``; others work too.
        patch_size (int): Side of a patch in pixels. Defaults to 16.
        stride (int, optional): Step between patches, smaller than ``patch_size`` for overlapping
            patches. Defaults to ``patch_size``.
        sie (dict, optional): Arguments of :class:`SideInformationEmbedding`, e.g.
            ``dict(num_cameras=6)``.
        token_fusion (dict, optional): Config of a policy that fuses tokens on the way, e.g.
            ``dict(type='MCTF', r=16)`` or ``dict(type='ToMe', r=13)``. ``out_type='featmap'``
            gives every patch what the token it went into has, ``'avg_featmap'`` the mean of that
            map; ``'raw'`` are the fused tokens.
        drop_path_rate (float): Stochastic depth, growing linearly over the layers.
        attn_drop_rate (float): Dropout rate on attention weights. Defaults to 0.
        qkv_bias (bool, optional): Defaults to the architecture's.
        qk_scale (float, optional): Defaults to the architecture's.
        with_cp (bool): Recompute layers in the backward pass to save memory. Defaults to False.
        interpolate_mode (str): How position embeddings are resized. Defaults to ``'bilinear'``.
        init_cfg (dict, optional): ``dict(type='Pretrained', checkpoint=..., source=...)`` loads
            weights, converted from ``source`` (see :mod:`vitdown.converters`) and with an error
            where they do not fit; None initialises as TransReID does.
        layer_cfgs (dict | Sequence[dict]): Extra arguments of the layers.
        quant_cfg (dict, optional): Low-bit weights and activations, e.g.
            ``dict(type='OFQ', w_bits=4, a_bits=4)``; see
            :class:`vitdown.models.quantization.OFQ`.
        out_type (str): One of mmpretrain's (``'cls_token'``, ``'raw'``, ``'featmap'``,
            ``'avg_featmap'``), or ``'tokens'`` for :class:`TokenFeatures` as the only output.
        **kwargs: Other arguments of mmpretrain's ``VisionTransformer`` (``out_indices``,
            ``final_norm``, ``frozen_stages``, ``norm_cfg`` ...).

    Examples:
        >>> import torch
        >>> from vitdown.models.backbones import VisionTransformer
        >>> model = VisionTransformer('deit-tiny', img_size=(256, 128), stride=12)
        >>> model.patch_resolution
        (21, 10)
        >>> model(torch.rand(2, 3, 256, 128))[-1].shape
        torch.Size([2, 192])
    """

    OUT_TYPES = {*MMPretrainVisionTransformer.OUT_TYPES, 'tokens'}
    arch_zoo = {
        **MMPretrainVisionTransformer.arch_zoo,
        'vit-small': {
            'embed_dims': 768,
            'num_layers': 8,
            'num_heads': 8,
            'feedforward_channels': 768 * 3,
            'qkv_bias': False,
            'qk_scale': 768**-0.5,
        },
        'vit-base': MMPretrainVisionTransformer.arch_zoo['base'],
    }

    def __init__(
        self,
        arch: str | dict = 'deit-small',
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        sie: dict | None = None,
        token_fusion: dict | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        qkv_bias: bool | None = None,
        qk_scale: float | None = None,
        with_cp: bool = False,
        interpolate_mode: str = 'bilinear',
        layer_scale_init_value: float = 0.0,
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        frozen_stages: int = -1,
        patch_cfg: dict | None = None,
        layer_cfgs: dict | Sequence[dict] | None = None,
        init_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(arch, str) and arch.lower() not in self.arch_zoo:
            raise ValueError(
                f'Unknown arch {arch!r}; choose from {sorted(self.arch_zoo)} or give a dict'
            )
        if min(to_2tuple(img_size)) < patch_size:
            raise ValueError(f'img_size {img_size} is smaller than patch_size {patch_size}')
        super().__init__(
            arch=arch,
            img_size=img_size,
            patch_size=patch_size,
            drop_rate=drop_rate,
            interpolate_mode=interpolate_mode,
            norm_cfg=norm_cfg,
            patch_cfg={'stride': stride or patch_size, 'padding': 0, **(patch_cfg or {})},
            init_cfg=init_cfg,
            **kwargs,
        )
        if qkv_bias is None:
            qkv_bias = self.arch_settings.get('qkv_bias', True)
        if qk_scale is None:
            qk_scale = self.arch_settings.get('qk_scale')
        if layer_cfgs is None or isinstance(layer_cfgs, dict):
            layer_cfgs = [layer_cfgs or {}] * self.num_layers
        drop_path_rates = np.linspace(0, drop_path_rate, self.num_layers).tolist()
        #: Arguments of each layer, for heads with a layer of the same kind
        self.layer_settings = [
            {
                'embed_dims': self.embed_dims,
                'num_heads': self.arch_settings['num_heads'],
                'feedforward_channels': self.arch_settings['feedforward_channels'],
                'qkv_bias': qkv_bias,
                'qk_scale': qk_scale,
                'drop_rate': drop_rate,
                'attn_drop_rate': attn_drop_rate,
                'drop_path_rate': rate,
                'layer_scale_init_value': layer_scale_init_value,
                'norm_cfg': norm_cfg,
                **layer_cfg,
            }
            for rate, layer_cfg in zip(drop_path_rates, layer_cfgs)
        ]
        self.layers = ModuleList(
            self._layer_type(i)(**settings) for i, settings in enumerate(self.layer_settings)
        )
        self.sie = SideInformationEmbedding(self.embed_dims, **sie) if sie else None
        self.token_fusion = None
        if token_fusion and not isinstance(token_fusion, Mapping):
            raise TypeError(
                f'token_fusion takes the config of one policy, MCTF or ToMe, not {token_fusion!r}'
            )
        if token_fusion:
            own = dict(num_layers=self.num_layers, num_protected=self.num_extra_tokens)
            if given := sorted(own.keys() & token_fusion.keys()):
                raise ValueError(
                    f'token_fusion gets {" and ".join(given)} from the backbone; leave it out'
                )
            # With a scope, also inside of another package's model.
            self.token_fusion = MODELS.build(dict(_scope_='vitdown', **own, **token_fusion))
        self.with_cp = with_cp
        self.frozen_stages = frozen_stages
        self._freeze_stages()

    def _layer_type(self, index: int) -> type[TransformerEncoderLayer]:
        """Class of a layer, for backbones that replace some."""
        return TransformerEncoderLayer

    def _freeze_stages(self) -> None:
        if self.frozen_stages > 0:
            super()._freeze_stages()

    def train(self, mode: bool = True) -> 'VisionTransformer':
        super().train(mode)
        self._freeze_stages()
        return self

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``, else initialise as TransReID and timm do."""
        if self.init_cfg and self.init_cfg.get('type') == 'Pretrained':
            load_pretrained(self, **{k: v for k, v in self.init_cfg.items() if k != 'type'})
            return
        super().init_weights()
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif name == 'patch_embed.projection' and isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)

    def _prepare_pos_embed(self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any) -> None:
        """Resize the position embedding of a checkpoint, also from a rectangular grid."""
        name = prefix + 'pos_embed'
        if name not in state_dict:
            return
        pos_embed = state_dict[name]
        has_cls_token = (
            prefix + 'cls_token' in state_dict or pos_embed.shape[1] == self.pos_embed.shape[1] + 1
        )
        if has_cls_token and not self.with_cls_token:
            pos_embed = pos_embed[:, 1:]
        if pos_embed.shape[1] != self.pos_embed.shape[1]:
            src_grid = infer_grid(pos_embed.shape[1] - self.num_extra_tokens, self.patch_resolution)
            pos_embed = resize_pos_embed(
                pos_embed,
                self.patch_resolution,
                src_grid,
                self.interpolate_mode,
                self.num_extra_tokens,
            )
        state_dict[name] = pos_embed

    def extra_tokens(self) -> list[nn.Parameter]:
        """Learned tokens ``(1, 1, C)`` that stand before the patches."""
        return [] if self.cls_token is None else [self.cls_token]

    def embed_patches(
        self,
        x: Tensor,
        camera_ids: Sequence[int] | None = None,
        view_ids: Sequence[int] | None = None,
    ) -> tuple[Tensor, tuple[int, int]]:
        """Tokens that enter the first layer.

        Args:
            x (Tensor): Images ``(B, 3, H, W)``.
            camera_ids (Sequence[int], optional): 0-based cameras, needed with SIE on cameras.
            view_ids (Sequence[int], optional): 0-based views, needed with SIE on views.

        Returns:
            tuple: Tokens ``(B, T, C)`` and the patch grid ``(h, w)``.
        """
        x, patch_resolution = self.patch_embed(x)
        extra_tokens = [token.expand(x.shape[0], -1, -1) for token in self.extra_tokens()]
        x = torch.cat((*extra_tokens, x), dim=1)
        x = x + resize_pos_embed(
            self.pos_embed,
            patch_resolution,
            self.patch_resolution,
            self.interpolate_mode,
            self.num_extra_tokens,
        )
        if self.sie is not None:
            x = x + self.sie(self.sie.index(camera_ids, view_ids))
        return self.pre_norm(self.drop_after_pos(x)), patch_resolution

    def _check_fusion_r(self, r: int | float) -> None:
        if self.token_fusion is None:
            raise ValueError('fusion_r needs a backbone with token_fusion')
        check_r(r, 'fusion_r')

    @contextmanager
    def override_fusion(self, r: int | float) -> Iterator[None]:
        """Fuse ``r`` tokens in each active layer inside of this context; 0 for none.

        For callers that reach the backbone by way of a whole model; ``fusion_r`` of
        :meth:`forward` and :meth:`forward_tokens` does the same for one call. Holds in the thread
        that enters it alone; coroutines, which take turns in one thread, leave it before they wait.
        """
        self._check_fusion_r(r)
        previous = _OVERRIDES.r
        _OVERRIDES.r = {**previous, self: r}
        try:
            yield
        finally:
            _OVERRIDES.r = previous

    def _run_layers(
        self,
        x: Tensor,
        need_weights: bool | str = False,
        partner: Tensor | None = None,
        partner_stream: str = 'pwca',
        fusion_r: int | float | None = None,
    ) -> Iterator[tuple[Tensor, Tensor | tuple[Tensor, Tensor] | None, FusionState]]:
        """Yield after each layer its tokens, head-averaged attention (or factors, None), state."""
        if fusion_r is not None:
            self._check_fusion_r(fusion_r)
        state = FusionState(r=_OVERRIDES.r.get(self) if fusion_r is None else fusion_r)
        options = (need_weights, partner, partner_stream)
        for i, layer in enumerate(self.layers):
            run, *args = (layer, x, None, *options)
            if self.token_fusion is not None:
                run, *args = (self.token_fusion, layer, i, x, state, *options)
            if self.with_cp and x.requires_grad:
                outs = cp.checkpoint(run, *args, use_reentrant=False)
            else:
                outs = run(*args)
            if self.token_fusion is not None:
                x, state, weights = outs
            else:
                x, weights = outs
                weights = weights.mean(dim=1) if need_weights is True else weights
            yield x, weights, state

    def forward_tokens(
        self,
        x: Tensor,
        camera_ids: Sequence[int] | None = None,
        view_ids: Sequence[int] | None = None,
        need_attention: bool | str = False,
        partner: Tensor | None = None,
        partner_stream: str = 'pwca',
        fusion_r: int | float | None = None,
    ) -> TokenFeatures:
        """Run the network and return its tokens, for heads that need more than the output tuple.

        Args:
            x (Tensor): Images ``(B, 3, H, W)``.
            camera_ids (Sequence[int], optional): See :meth:`embed_patches`.
            view_ids (Sequence[int], optional): See :meth:`embed_patches`.
            need_attention (bool | str): True to return each layer's attention too, at the price
                of the fused kernel; ``'factors'`` for pairs of scaled queries and keys
                ``(B, H, T, d)`` instead, detached, which :func:`attention_rollout_cls` takes.
                Defaults to False.
            partner (Tensor, optional): ``(B,)`` index of each image's partner. If given, a second
                stream of tokens runs beside the first through the same layers by pair-wise
                cross-attention (DCAL, arXiv 2205.02151, Sec. 3.3).
            partner_stream (str): See :func:`two_stream_attention`. Defaults to ``'pwca'``.
            fusion_r (int | float, optional): Tokens that each active layer fuses this time,
                instead of the token fusion's own setting; 0 for none.
        """
        x, patch_resolution = self.embed_patches(x, camera_ids, view_ids)
        batch = x.shape[0]
        if partner is not None:
            x = torch.cat((x, x))
        attentions = []
        last_layer_input, last_layer_state = x, FusionState()
        layers = self._run_layers(x, need_attention, partner, partner_stream, fusion_r)
        for i, (tokens, attention, state) in enumerate(layers):
            if i == self.num_layers - 2:
                last_layer_input, last_layer_state = tokens, state.narrow(batch)
            if need_attention:
                attentions.append(attention)
        normed = self.ln1(tokens) if self.final_norm else tokens
        state = state.narrow(batch)
        return TokenFeatures(
            tokens=tokens[:batch],
            normed_tokens=normed[:batch],
            last_layer_input=last_layer_input[:batch],
            patch_resolution=patch_resolution,
            attentions=tuple(attentions) if need_attention else None,
            pair_tokens=None if partner is None else tokens[batch:],
            normed_pair_tokens=None if partner is None else normed[batch:],
            sizes=state.size,
            source=state.source,
            last_layer_sizes=last_layer_state.size,
            last_layer_source=last_layer_state.source,
        )

    def forward(
        self,
        x: Tensor,
        camera_ids: Sequence[int] | None = None,
        view_ids: Sequence[int] | None = None,
        fusion_r: int | float | None = None,
    ) -> tuple[Tensor, ...]:
        """Features of the layers ``out_indices`` in the form ``out_type``.

        Args:
            x (Tensor): Images ``(B, 3, H, W)``.
            camera_ids (Sequence[int], optional): See :meth:`embed_patches`.
            view_ids (Sequence[int], optional): See :meth:`embed_patches`.
            fusion_r (int | float, optional): See :meth:`forward_tokens`.
        """
        if self.out_type == 'tokens':
            return (self.forward_tokens(x, camera_ids, view_ids, fusion_r=fusion_r),)
        x, patch_resolution = self.embed_patches(x, camera_ids, view_ids)
        outs = []
        for i, (tokens, _, state) in enumerate(self._run_layers(x, fusion_r=fusion_r)):
            if i == self.num_layers - 1 and self.final_norm:
                tokens = self.ln1(tokens)
            if i in self.out_indices:
                if self.out_type in ('featmap', 'avg_featmap'):
                    tokens = state.spread(tokens)
                outs.append(self._format_output(tokens, patch_resolution))
        return tuple(outs)
