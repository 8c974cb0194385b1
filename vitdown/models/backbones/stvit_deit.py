from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import torch
import torch.utils.checkpoint as cp
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..layers import CrossEncoderLayer, RegionPooling, TransformerEncoderLayer
from ..layers.semantic_pooling import regions_fit
from ..option_checks import check_flags, check_integers, refuse_token_fusion
from ..pretrained import load_pretrained
from ..quantization import quantizable
from .vision_transformer import VisionTransformer


@MODELS.register_module()
@quantizable
class STViTDeiT(VisionTransformer):
    """DeiT whose later layers work on a few semantic tokens: STViT-DeiT.

    "Making Vision Transformers Efficient from A Token Sparsification View" (CVPR 2023), Sec. 3.
    Base layers on all patches; generation layers, in which semantic tokens, pooled in regions of
    the map, attend to the patches; and layers on the semantic tokens alone. The released code does
    not contain it: the layout is a reconstruction whose multiply-adds are the paper's to three
    digits.

    There is no class token. The output is the mean of the semantic tokens, normalised
    (``out_type='avg_featmap'``). Weights of DeiT load by name: what exists here alone - pooling,
    centres, final norm - starts anew, the class token is left out.

    Args:
        arch (str | dict): See :class:`VisionTransformer`. Defaults to ``'deit-small'``.
        num_base (int): Layers on all patches. Defaults to 4.
        num_generation (int): Generation layers. From the second on, the semantic tokens are among
            the keys. Defaults to 2.
        semantic_grid (tuple[int, int]): Rows and columns of semantic tokens. Defaults to (4, 4).
        pool (str): See :class:`RegionPooling`. Defaults to ``'intra'``.
        use_global_center (bool): Learned centres, added to the queries of the second generation
            layer. Defaults to True.
        out_type (str): ``'avg_featmap'``, ``'featmap'`` or ``'raw'``. Layers before the generation
            layers (``out_indices``) give patches. Defaults to ``'avg_featmap'``.
        final_norm (bool): Norm of the last layer's tokens, besides that of their mean. Defaults to
            False.
        **kwargs: See :class:`VisionTransformer`; token fusion is refused.

    Raises:
        ValueError: For settings that do not fit each other.

    Examples:
        >>> import torch
        >>> from vitdown.models.backbones import STViTDeiT
        >>> model = STViTDeiT('deit-tiny', img_size=(256, 128), semantic_grid=(4, 2))
        >>> model(torch.rand(2, 3, 256, 128))[-1].shape
        torch.Size([2, 192])
    """

    def __init__(
        self,
        arch: str | dict = 'deit-small',
        num_base: int = 4,
        num_generation: int = 2,
        semantic_grid: tuple[int, int] = (4, 4),
        pool: str = 'intra',
        use_global_center: bool = True,
        out_type: str = 'avg_featmap',
        final_norm: bool = False,
        token_fusion: dict | None = None,
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        **kwargs: Any,
    ) -> None:
        refuse_token_fusion(self, token_fusion, 'pools tokens by their place')
        if out_type == 'cls_token':
            raise ValueError("STViTDeiT has no class token; use out_type='avg_featmap'")
        check_integers('semantic_grid', semantic_grid, low=1, sizes=(2,))
        check_integers('num_base', num_base, low=0)
        check_integers('num_generation', num_generation, low=1)
        check_flags(use_global_center=use_global_center)
        self.num_base = num_base
        self.num_generation = num_generation
        super().__init__(
            arch,
            with_cls_token=False,
            out_type=out_type,
            final_norm=final_norm,
            norm_cfg=norm_cfg,
            **kwargs,
        )
        if num_base + num_generation > self.num_layers:
            raise ValueError(
                f'num_base={num_base} and num_generation={num_generation} do not fit into '
                f'{self.num_layers} layers'
            )
        if use_global_center and num_generation < 2:
            raise ValueError('The global centres enter the second generation layer, there is none')
        self.semantic_grid = (semantic_grid[0], semantic_grid[1])
        for side, parts in zip(self.patch_resolution, semantic_grid):
            if parts not in (fitting := [n for n in range(1, side + 1) if regions_fit(side, n)]):
                raise ValueError(
                    f'semantic_grid={self.semantic_grid} has regions of padding alone on the '
                    f'{"x".join(map(str, self.patch_resolution))} patches of img_size: a side of '
                    f'{side} patches takes {", ".join(map(str, fitting))}'
                )
        self.pool = RegionPooling(self.embed_dims, self.semantic_grid, pool, norm_cfg)
        self.global_center = None
        if use_global_center:
            num_tokens = self.semantic_grid[0] * self.semantic_grid[1]
            centers = trunc_normal_(torch.empty(1, num_tokens, self.embed_dims), std=0.02)
            self.global_center = nn.Parameter(centers)

    def _layer_type(self, index: int) -> type[TransformerEncoderLayer]:
        generates = self.num_base <= index < self.num_base + self.num_generation
        return CrossEncoderLayer if generates else TransformerEncoderLayer

    @property
    def forward_tokens(self) -> NoReturn:
        """Not offered: the layers' tokens differ in number and meaning."""
        raise AttributeError('STViTDeiT has no forward_tokens')

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg`` (DeiT's too), else initialise as DeiT."""
        if self.init_cfg and self.init_cfg.get('type') == 'Pretrained':
            options = {k: v for k, v in self.init_cfg.items() if k != 'type'}
            own = [r'^cls_token$', r'^ln[12]\.', r'^pool\.', r'^global_center$']
            load_pretrained(self, **options, optional=own)
        else:
            super().init_weights()

    def run_layers(self, x: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
        """Yield the tokens after each layer.

        Args:
            x (Tensor): Tokens that enter the first layer, ``(B, h * w, C)``.
            size (tuple[int, int]): Their grid ``(h, w)``.
        """
        layers = list(self.layers)
        for layer in layers[: self.num_base]:
            x = self._run(layer, x)[0]
            yield x
        first_semantic = self.num_base + self.num_generation
        semantic, keys = self.pool(x, size), x
        for i, layer in enumerate(layers[self.num_base : first_semantic]):
            if i > 0:
                keys = torch.cat((semantic, x), dim=1)
            if i == 1 and self.global_center is not None:
                semantic = semantic + self.global_center
            semantic = self._run(layer, semantic, keys)
            yield semantic
        for layer in layers[first_semantic:]:
            semantic = self._run(layer, semantic)[0]
            yield semantic

    def _run(self, layer: nn.Module, x: Tensor, *args: Tensor) -> Any:
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(layer, x, *args, use_reentrant=False)
        return layer(x, *args)

    def forward(  # type: ignore[override]  # no fusion_r, as no tokens are fused
        self,
        x: Tensor,
        camera_ids: Sequence[int] | None = None,
        view_ids: Sequence[int] | None = None,
    ) -> tuple[Tensor, ...]:
        """Features of the layers ``out_indices`` in the form ``out_type``.

        Args:
            x (Tensor): Images ``(B, 3, H, W)``.
            camera_ids (Sequence[int], optional): See :meth:`embed_patches`.
            view_ids (Sequence[int], optional): See :meth:`embed_patches`.
        """
        x, size = self.embed_patches(x, camera_ids, view_ids)
        outs = []
        for i, tokens in enumerate(self.run_layers(x, size)):
            if i == self.num_layers - 1 and self.final_norm:
                tokens = self.ln1(tokens)
            if i in self.out_indices:
                grid = size if i < self.num_base else self.semantic_grid
                outs.append(self._format_output(tokens, grid))
        return tuple(outs)
