import copy

import torch
from mmengine.model import BaseModule
from mmpretrain.models.utils import build_norm_layer
from torch import Tensor

from ..layers import GLCABlock, attention_rollout_cls, select_top_r


class GLCABranch(BaseModule):
    """Global-local cross-attention branch: one block and norm of its own, one feature an image.

    DCAL (arXiv 2205.02151, Sec. 3.2). The patches that ask are those with the highest attention
    rollout. With ``pool='cls'`` the feature does not depend on them (the queries of one block do
    not meet), so neither the rollout nor their rows are computed: the same result for less.

    Args:
        embed_dims (int): Width C of the tokens.
        num_heads (int): Attention heads.
        feedforward_channels (int): Hidden width of the MLP.
        ratio (float): Share of the patches that are selected. Defaults to 0.3.
        input (str): ``'last'`` for the last layer's output (a 13th layer), ``'penultimate'`` for
            the last layer's input (parallel to it).
        pool (str): Feature: ``'cls'`` for the class token, ``'mean'`` for the mean over the
            selected patches.
        init (str): ``'random'``, ``'copy'`` of the backbone's last layer and norm, or ``'auto'``:
            random for ``'last'``, copy for ``'penultimate'``.
        norm_cfg (dict): Norm. Defaults to LayerNorm with eps 1e-6.
        layer_cfg (dict, optional): More arguments of :class:`GLCABlock`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        ratio: float = 0.3,
        input: str = 'last',
        pool: str = 'cls',
        init: str = 'auto',
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        layer_cfg: dict | None = None,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ('input', input, ('last', 'penultimate')),
            ('pool', pool, ('cls', 'mean')),
            ('init', init, ('auto', 'random', 'copy')),
        ):
            if value not in known:
                raise ValueError(f'glca.{name} must be one of {known}, got {value!r}')
        if not 0 < ratio <= 1:
            raise ValueError(f'glca.ratio must be in (0, 1], got {ratio}')
        self.ratio = ratio
        self.input = input
        self.pool = pool
        self.copies_backbone = init == 'copy' or (init == 'auto' and input == 'penultimate')
        self.block = GLCABlock(
            embed_dims, num_heads, feedforward_channels, norm_cfg=norm_cfg, **(layer_cfg or {})
        )
        self.norm = build_norm_layer(norm_cfg, embed_dims)

    @property
    def needs_attention(self) -> bool:
        """Whether the feature depends on the backbone's attention."""
        return self.pool == 'mean'

    def attach(self, backbone: BaseModule) -> None:
        """Take over what a copy of the backbone's last layer needs besides its weights."""
        if self.copies_backbone:
            layer = backbone.layers[-1]
            self.block.attn.scale = layer.attn.scale
            self.block.attn.gamma1 = copy.deepcopy(layer.attn.gamma1)
            self.block.ffn.gamma2 = copy.deepcopy(layer.ffn.gamma2)

    def init_from_backbone(self, backbone: BaseModule) -> None:
        """Copy the backbone's last layer and final norm, if the branch starts from them.

        Raises:
            ValueError: If the block has another number of heads or another MLP width.
        """
        if self.copies_backbone:
            layer = backbone.layers[-1]
            for name, own, expected in (
                ('num_heads', self.block.attn.num_heads, layer.attn.num_heads),
                (
                    'feedforward_channels',
                    self.block.ffn.feedforward_channels,
                    layer.ffn.feedforward_channels,
                ),
            ):
                if own != expected:
                    raise ValueError(
                        f'The GLCA block has {name}={own} and cannot start as a copy of a layer '
                        f'with {expected}; set {name}={expected} in the head'
                    )
            # Of a quantized layer the weights alone; a bias that the layer does not have is zero.
            no_bias = torch.zeros(sum(layer.attn.part_sizes))
            weights = {'attn.qkv.bias': no_bias, **layer.state_dict()}
            self.block.load_state_dict({name: weights[name] for name in self.block.state_dict()})
            self.norm.load_state_dict(backbone.ln1.state_dict())

    def select(self, feats) -> Tensor:
        """Selected patches ``(B, R)`` by descending rollout, from ``TokenFeatures``."""
        return select_top_r(attention_rollout_cls(feats.attentions)[:, 1:], self.ratio)

    def tokens(self, feats, idx: Tensor | None = None) -> Tensor:
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

    def forward(self, feats) -> Tensor:
        """Feature ``(B, C)`` from ``TokenFeatures``."""
        if self.pool == 'cls':
            return self.norm(self.tokens(feats)[:, 0])
        return self.norm(self.tokens(feats, self.select(feats))[:, 1:]).mean(dim=1)
