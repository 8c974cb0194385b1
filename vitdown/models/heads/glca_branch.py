import copy
from collections.abc import Mapping
from typing import Any

from mmengine.model import BaseModule
from mmpretrain.models.utils import build_norm_layer
from torch import Tensor, nn

from ..layers import GLCABlock, attention_rollout_cls, select_top_r


class GLCABranch(BaseModule):
    """Global-local cross-attention branch: one block and norm of its own, one feature an image.

    DCAL (arXiv 2205.02151, Sec. 3.2), with one block as in all of the paper's experiments. The
    patches that ask are those with the highest attention rollout. With ``pool='cls'`` the feature
    does not depend on them (the queries of one block do not meet), so neither the rollout nor their
    rows are computed: the same result for less.

    The block is one of the kind that the backbone's layers are, without their dropout and drop
    path; one that starts at random also without their layer scale, since it is near the identity
    as it is.

    Args:
        backbone (VisionTransformer): The backbone beside which the branch stands.
        num_heads (int, optional): Attention heads. Defaults to those of the backbone's last layer.
        feedforward_channels (int, optional): Hidden width of the MLP. Defaults to that of the
            backbone's last layer.
        ratio (float): Share of the patches that are selected. Defaults to 0.3.
        input (str): ``'last'`` for the last layer's output (a 13th layer), ``'penultimate'`` for
            the last layer's input (parallel to it).
        pool (str): Feature: ``'cls'`` for the class token, ``'mean'`` for the mean over the
            selected patches.
        init (str): ``'random'``, ``'copy'`` of the backbone's last layer and norm, or ``'auto'``:
            random for ``'last'``, copy for ``'penultimate'``.
        num_blocks (int): 1.
        norm_cfg (dict, optional): Norm. Defaults to the backbone's, at the end to its final norm
            or none where it has none.
        layer_cfg (dict, optional): More arguments of :class:`GLCABlock`.

    Raises:
        ValueError: If a setting is unknown, or the block is to start as a copy of a layer that it
            cannot be a copy of.
    """

    def __init__(
        self,
        backbone: BaseModule,
        num_heads: int | None = None,
        feedforward_channels: int | None = None,
        ratio: float = 0.3,
        input: str = 'last',
        pool: str = 'cls',
        init: str = 'auto',
        num_blocks: int = 1,
        norm_cfg: dict | None = None,
        layer_cfg: dict | None = None,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ('input', input, ('last', 'penultimate')),
            ('pool', pool, ('cls', 'mean')),
            ('init', init, ('auto', 'random', 'copy')),
            ('num_blocks', num_blocks, (1,)),
        ):
            if value not in known:
                raise ValueError(f'glca.{name} must be one of {known}, got {value!r}')
        if type(ratio) not in (int, float) or not 0 < ratio <= 1:
            raise ValueError(f'glca.ratio must be a number in (0, 1], got {ratio!r}')
        self.ratio = ratio
        self.input = input
        self.pool = pool
        self.copies_backbone = init == 'copy' or (init == 'auto' and input == 'penultimate')
        given = dict(
            num_heads=num_heads, feedforward_channels=feedforward_channels, norm_cfg=norm_cfg
        )
        given = {name: value for name, value in given.items() if value is not None}
        given.update(layer_cfg or {})
        settings = backbone.layer_settings[-1]
        if self.copies_backbone:
            _check_copy(settings, given)
        self.block = GLCABlock(**_block_settings(settings, given, self.copies_backbone))
        if self.copies_backbone:
            # Of any kind: layer scale, or a constant
            layer = backbone.layers[-1]
            self.block.attn.gamma1 = copy.deepcopy(layer.attn.gamma1)
            self.block.ffn.gamma2 = copy.deepcopy(layer.ffn.gamma2)
        if norm_cfg is None and not backbone.final_norm:
            self.norm = nn.Identity()
        else:
            self.norm = build_norm_layer(norm_cfg or settings['norm_cfg'], backbone.embed_dims)

    @property
    def needs_attention(self) -> bool:
        """Whether the feature depends on the backbone's attention."""
        return self.pool == 'mean'

    def init_from_backbone(self, backbone: BaseModule) -> None:
        """Copy the backbone's last layer and final norm, if the branch starts from them.

        Raises:
            ValueError: If the layer has factors of its tokens, which the block has not.
        """
        if self.copies_backbone:
            # Of a quantized layer the weights alone
            layer = backbone.layers[-1].state_dict()
            factors = layer.get('attn.qkv.token_scale')
            if factors is not None and not (factors == 1).all():
                raise ValueError(
                    "The GLCA block cannot copy the factors of the backbone's tokens, which are "
                    "not 1: set glca.init='random'"
                )
            self.block.load_state_dict({name: layer[name] for name in self.block.state_dict()})
            if backbone.final_norm:
                self.norm.load_state_dict(backbone.ln1.state_dict())

    def select(self, feats: Any) -> Tensor:
        """Selected patches ``(B, R)`` by descending rollout, from ``TokenFeatures``."""
        return select_top_r(attention_rollout_cls(feats.attentions)[:, 1:], self.ratio)

    def tokens(self, feats: Any, idx: Tensor | None = None) -> Tensor:
        """Class token and selected patches after the block, ``(B, 1 + R, C)``, before the norm.

        Of fused tokens each counts as often as there are patches in it, and a patch asks by way of
        the token that it went into: the result is that of all patches' tokens, spread.
        """
        if self.input == 'last':
            tokens, sizes, source = feats.tokens, feats.sizes, feats.source
        else:
            tokens = feats.last_layer_input
            sizes, source = feats.last_layer_sizes, feats.last_layer_source
        if source is None:
            return self.block(tokens, idx)
        if idx is not None:
            idx = source.take_along_dim(idx + 1, dim=1) - 1
        return self.block(tokens, idx, attn_bias=sizes.log()[:, None, None].to(tokens.dtype))

    def forward(self, feats: Any) -> Tensor:
        """Feature ``(B, C)`` from ``TokenFeatures``."""
        if self.pool == 'cls':
            return self.norm(self.tokens(feats)[:, 0])
        return self.norm(self.tokens(feats, self.select(feats))[:, 1:]).mean(dim=1)


#: Settings of a layer that only training has, and what a GLCA block has of them by default
_REGULARIZATION = dict(drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.0)


def _block_settings(layer: Mapping, given: Mapping, copied: bool) -> dict:
    """Arguments of the block: the layer's, unless others are given."""
    settings = {**layer, **_REGULARIZATION}
    if not copied:
        settings['layer_scale_init_value'] = 0.0
    if given.get('num_heads', layer['num_heads']) != layer['num_heads']:
        # Channels and scale of a head go with the number of heads.
        settings.update(qk_dims=None, v_dims=None, qk_scale=None)
    return {**settings, **given}


def _check_copy(layer: Mapping, given: Mapping) -> None:
    others = [
        f'{name}={value} (there {layer.get(name)})'
        for name, value in given.items()
        if name not in _REGULARIZATION and value != layer.get(name)
    ]
    if others:
        raise ValueError(
            "The GLCA block starts as a copy of the backbone's last layer and cannot have "
            f"{', '.join(others)}: leave that out, or set glca.init='random'"
        )
