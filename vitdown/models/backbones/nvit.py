from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..layers import TokenScaledLinear, infer_grid, resize_pos_embed
from ..option_checks import check_integers
from ..pretrained import load_pretrained
from ..quantization import quantizable
from .vision_transformer import TokenFeatures, VisionTransformer

Sizes = int | Sequence[int]

#: Attention scale of a ViT with 64 channels a head, which pruning its queries does not change.
FULL_QK_SCALE = 64**-0.5


def revit_arch(embed_dims: int) -> dict:
    """Sizes of a 12-block ReViT by the rule of NViT's authors (arXiv 2110.04869, Sec. 4.3).

    The rule is that of the released code, whose costs are the published ones: the first and last
    block have 10 heads, blocks 4 to 9 are twice as large as the rest.

    Args:
        embed_dims (int): Width C of the tokens.

    Returns:
        dict: An ``arch`` of :class:`NViT`.
    """
    heads = 2 * round(0.005 * embed_dims)
    qk_dims = 8 * round(0.05 * embed_dims / 8)
    inner = range(3, 9)
    ends = (0, 11)
    blocks = range(12)
    return dict(
        embed_dims=embed_dims,
        num_layers=12,
        num_heads=[10 if b in ends else heads * (2 if b in inner else 1) for b in blocks],
        qk_dims=[qk_dims * (2 if b in inner or b in ends else 1) for b in blocks],
        v_dims=64,
        feedforward_channels=[(6 if b in inner else 3) * embed_dims for b in blocks],
        qk_scale=FULL_QK_SCALE,
    )


def _proxy_arch(
    embed_dims: int, heads: Sequence[int], qk_dims: Sequence[int], feedforward: Sequence[int]
) -> dict:
    """Three outer, six inner, three outer blocks; each pair is (outer, inner)."""
    blocks = [0] * 3 + [1] * 6 + [0] * 3
    return dict(
        embed_dims=embed_dims,
        num_layers=12,
        num_heads=[heads[b] for b in blocks],
        qk_dims=[qk_dims[b] for b in blocks],
        v_dims=64,
        feedforward_channels=[feedforward[b] for b in blocks],
        qk_scale=FULL_QK_SCALE,
    )


@MODELS.register_module()
@quantizable
class NViT(VisionTransformer):
    """Plain ViT whose blocks have sizes of their own: what global pruning makes of a ViT.

    NViT (arXiv 2110.04869). Number of heads, channels of a head's queries and keys, of its values,
    and width of the MLP may differ from block to block; the width of the tokens is the same in
    all. The attention scale stays that of the model before pruning.

    Named archs are those of :class:`VisionTransformer` and

    - ``'revit-s'``, ``'revit-t'``: the authors' rule to size a ViT (:func:`revit_arch`). The
      published cost of ReViT-T is that of width 192; ``'revit-t-176'`` has the width of the text.
    - ``'proxy-b'``, ``'proxy-h'``, ``'proxy-s'``, ``'proxy-t'``: stand-ins of our own with the
      published costs of NViT-B/H/S/T, for benchmarks and shape tests. **Not the official
      architectures**, which are known from their checkpoints only
      (``tools/model_converters/convert.py nvit``).

    Args:
        arch (str | dict): Name, or a dict with ``embed_dims``, ``num_layers``, and one number or
            a list with one a layer of ``num_heads``, ``feedforward_channels`` and optionally
            ``qk_dims`` and ``v_dims`` (channels of one head); optionally ``qk_scale``.
        img_size (int | tuple[int, int]): See :class:`VisionTransformer`.
        with_dist_token (bool): Whether a distillation token follows the class token, as in
            distilled DeiT; ``out_type='cls_token'`` then gives pairs of both. Defaults to False.
        token_scale (bool): Whether queries, keys and values of each token are multiplied by a
            learnt factor, which the official checkpoints have left over. Defaults to False.
        ln_mode (str): ``'dense'``: usual LayerNorm. ``'exact'``: the statistics of tokens of
            ``norm_dims`` channels, of which all but C are zero (:class:`PrunedLayerNorm`).
        norm_dims (int, optional): Needed by ``'exact'``.
        norm_cfg (dict): Of the usual LayerNorm. Defaults to eps 1e-6.
        **kwargs: Other arguments of :class:`VisionTransformer`.

    Examples:
        >>> import torch
        >>> from vitdown.models.backbones import NViT
        >>> arch = dict(embed_dims=48, num_layers=2, num_heads=[2, 4], qk_dims=[8, 16],
        ...             v_dims=16, feedforward_channels=[64, 128])
        >>> NViT(arch, img_size=64)(torch.rand(1, 3, 64, 64))[-1].shape
        torch.Size([1, 48])
    """

    arch_zoo: dict[str, dict] = {
        **VisionTransformer.arch_zoo,
        'revit-s': revit_arch(384),
        'revit-t': revit_arch(192),
        'revit-t-176': revit_arch(176),
        'proxy-b': _proxy_arch(512, (6, 8), (16, 32), (1344, 2688)),
        'proxy-h': _proxy_arch(480, (8, 10), (24, 40), (1088, 2176)),
        'proxy-s': _proxy_arch(432, (4, 8), (8, 16), (960, 1920)),
        'proxy-t': _proxy_arch(336, (2, 4), (8, 16), (320, 640)),
    }

    def __init__(
        self,
        arch: str | dict = 'revit-s',
        img_size: int | tuple[int, int] = 224,
        with_dist_token: bool = False,
        token_scale: bool = False,
        ln_mode: str = 'dense',
        norm_dims: int | None = None,
        qk_scale: float | None = None,
        token_fusion: dict | None = None,
        layer_cfgs: dict | Sequence[dict] | None = None,
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        **kwargs: Any,
    ) -> None:
        if isinstance(arch, str):
            if arch.lower() not in self.arch_zoo:
                raise ValueError(
                    f'Unknown arch {arch!r}; choose from {sorted(self.arch_zoo)} or give a dict'
                )
            arch = self.arch_zoo[arch.lower()]
        sizes = layer_sizes(arch)
        if ln_mode not in ('dense', 'exact'):
            raise ValueError(f"ln_mode must be 'dense' or 'exact', got {ln_mode!r}")
        if (ln_mode == 'exact') != (norm_dims is not None):
            raise ValueError(
                f"ln_mode={ln_mode!r} with norm_dims={norm_dims}: give norm_dims with 'exact' alone"
            )
        if token_scale and token_fusion:
            raise ValueError(
                'token_scale has one factor a token and cannot follow fused tokens; set '
                'token_fusion=None, or token_scale=False where all factors are 1'
            )
        if qk_scale is None:
            qk_scale = arch.get('qk_scale', FULL_QK_SCALE if 'qk_dims' in arch else None)
        if ln_mode == 'exact':
            norm_cfg = {**norm_cfg, 'type': 'vitdown.PrunedLayerNorm', 'norm_dims': norm_dims}
        if with_dist_token:
            self.num_extra_tokens = 2
        if not isinstance(layer_cfgs, Sequence):
            layer_cfgs = [layer_cfgs or {}] * len(sizes)
        if len(layer_cfgs) != len(sizes):
            raise ValueError(f'{len(layer_cfgs)} layer_cfgs for {len(sizes)} layers')
        # The parent knows equal layers only: what it is told here is replaced layer by layer.
        parent_arch = {**arch, 'num_heads': 1, 'feedforward_channels': 1}
        super().__init__(
            arch=parent_arch,
            img_size=img_size,
            qk_scale=qk_scale,
            token_fusion=token_fusion,
            layer_cfgs=[{**size, **layer_cfg} for size, layer_cfg in zip(sizes, layer_cfgs)],
            norm_cfg=norm_cfg,
            **kwargs,
        )
        self.arch_settings = dict(arch)
        self.dist_token = None
        if with_dist_token:
            if self.cls_token is None:
                raise ValueError('with_dist_token needs with_cls_token=True')
            self.dist_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
        if token_scale:
            for layer in self.layers:
                qkv = layer.attn.qkv
                layer.attn.qkv = TokenScaledLinear(
                    qkv.in_features, qkv.out_features, self.pos_embed.shape[1], qkv.bias is not None
                )
            self._register_load_state_dict_pre_hook(self._prepare_token_scale)

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``, else initialise as NViT's authors do.

        Linear layers and patch embedding start as PyTorch's, tokens and position embedding from
        a truncated normal distribution of deviation 0.02.
        """
        if self.init_cfg and self.init_cfg.get('type') == 'Pretrained':
            load_pretrained(self, **{k: v for k, v in self.init_cfg.items() if k != 'type'})
            return
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm)):
                module.reset_parameters()
        for token in (*self.extra_tokens(), self.pos_embed):
            trunc_normal_(token, std=0.02)
        if self.sie is not None:
            self.sie.init_weights()

    def _prepare_token_scale(
        self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Resize the tokens' factors of a checkpoint like its position embedding."""
        for i in range(self.num_layers):
            name = f'{prefix}layers.{i}.attn.qkv.token_scale'
            scale = state_dict.get(name)
            if scale is None or len(scale) == self.pos_embed.shape[1]:
                continue
            src_grid = infer_grid(len(scale) - self.num_extra_tokens, self.patch_resolution)
            state_dict[name] = resize_pos_embed(
                scale[None],
                self.patch_resolution,
                src_grid,
                self.interpolate_mode,
                self.num_extra_tokens,
            )[0]

    def extra_tokens(self) -> list[nn.Parameter]:
        tokens = super().extra_tokens()
        return tokens if self.dist_token is None else [*tokens, self.dist_token]

    def _format_output(self, x: Tensor, hw: tuple[int, int]) -> Tensor | tuple[Tensor, Tensor]:
        if self.out_type == 'cls_token' and self.dist_token is not None:
            return x[:, 0], x[:, 1]
        return super()._format_output(x, hw)

    def forward_tokens(self, *args: Any, **kwargs: Any) -> TokenFeatures:
        """See :meth:`VisionTransformer.forward_tokens`.

        Raises:
            ValueError: With a distillation token, which such features have no place for.
        """
        if self.dist_token is not None:
            raise ValueError(
                'Heads that work on tokens know one class token; set with_dist_token=False'
            )
        return super().forward_tokens(*args, **kwargs)


_ARCH_KEYS = {
    'embed_dims',
    'num_layers',
    'num_heads',
    'qk_dims',
    'v_dims',
    'feedforward_channels',
    'qk_scale',
    'qkv_bias',
}


def layer_sizes(arch: Mapping[str, Any]) -> list[dict[str, int]]:
    """Sizes of each layer of an ``arch`` of :class:`NViT`, or of :class:`VisionTransformer`.

    Returns:
        list[dict[str, int]]: ``num_heads``, ``qk_dims``, ``v_dims``, ``feedforward_channels``.

    Raises:
        ValueError: If an entry is missing or unknown, or not an integer, or a list of one a layer.
    """
    if not isinstance(arch, Mapping):
        raise ValueError(f'arch must be a name or a dict of sizes, got {arch!r}')
    unknown = set(arch) - _ARCH_KEYS
    if unknown:
        raise ValueError(
            f'arch has no {sorted(unknown)[0]!r}; its entries are {", ".join(sorted(_ARCH_KEYS))}'
        )
    missing = {'embed_dims', 'num_layers', 'num_heads', 'feedforward_channels'} - set(arch)
    if missing:
        raise ValueError(f'arch lacks {", ".join(sorted(missing))}')
    num_layers = arch['num_layers']
    for name in ('embed_dims', 'num_layers'):
        check_integers(f'arch.{name}', arch[name], 1)

    def spread(name: str, value: Sizes) -> list[int]:
        values: list[Any] = [value] * num_layers
        if isinstance(value, (list, tuple)):
            values = list(value)
        if len(values) != num_layers or any(type(v) is not int or v < 1 for v in values):
            raise ValueError(
                f'arch.{name} must be an integer or a list with one for each of the {num_layers} '
                f'layers, all at least 1, got {value!r}'
            )
        return values

    heads = spread('num_heads', arch['num_heads'])
    if not {'qk_dims', 'v_dims'} <= set(arch) and any(arch['embed_dims'] % h for h in heads):
        raise ValueError(
            f'arch.num_heads {arch["num_heads"]} does not divide embed_dims={arch["embed_dims"]}: '
            'give qk_dims and v_dims, the channels of one head'
        )
    own = [arch['embed_dims'] // h for h in heads]
    columns = dict(
        num_heads=heads,
        qk_dims=spread('qk_dims', arch.get('qk_dims', own)),
        v_dims=spread('v_dims', arch.get('v_dims', own)),
        feedforward_channels=spread('feedforward_channels', arch['feedforward_channels']),
    )
    return [dict(zip(columns, row)) for row in zip(*columns.values())]
