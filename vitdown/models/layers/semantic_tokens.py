from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .cross_encoder_layer import CrossEncoderLayer
from .semantic_layout import SemanticLayout
from .window_attention import RelativePositionBias


class SemanticTokenGenerator(CrossEncoderLayer):
    """Semantic tokens of each window attend to the image tokens around it (STViT, Sec. 3.2).

    Keys and values are projected once a token and gathered afterwards, though key windows overlap.

    Args:
        *args: See :class:`TransformerEncoderLayer`.
        reach (int, optional): Side of the key windows in image tokens; None for all tokens of the
            image.
        with_own_keys (bool): Whether the semantic tokens are among the keys, before the image
            tokens. Defaults to False.
        shortcut (bool): Whether the attention branch has a residual (and drop path) as in the
            paper; the released classifiers have none in the first layer. Defaults to True.
        conv_pos (bool): Whether a 3x3 depth-wise convolution inside each window, with a residual,
            precedes the layer. Defaults to False.
        **kwargs: See :class:`TransformerEncoderLayer`.
    """

    def __init__(
        self,
        *args: Any,
        reach: int | None = None,
        with_own_keys: bool = False,
        shortcut: bool = True,
        conv_pos: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.reach = reach
        self.with_own_keys = with_own_keys
        self.shortcut = shortcut
        dims = self.embed_dims
        self.conv_pos = nn.Conv2d(dims, dims, 3, padding=1, groups=dims) if conv_pos else None

    def forward(
        self, semantic: Tensor, image: Tensor, layout: SemanticLayout, center: Tensor | None = None
    ) -> Tensor:
        """Refine semantic tokens.

        Args:
            semantic (Tensor): ``(B, S, C)``, in raster order as everything here.
            image (Tensor): Image tokens ``(B, H * W, C)``.
            layout (SemanticLayout): Geometry of both.
            center (Tensor, optional): ``(1, S, C)`` global centres, added to queries and residual
                but not to keys.

        Returns:
            Tensor: Semantic tokens ``(B, S, C)``.
        """
        if self.conv_pos is not None:
            semantic = semantic + layout.join(_convolve(self.conv_pos, layout.split(semantic)))
        queries = semantic if center is None else semantic + center
        if self.reach is None:
            out = self._attend_to_image(queries, semantic, image, layout)
        else:
            out = self._attend_to_windows(queries, semantic, image, layout, self.reach)
        out = self.attn.proj(out)
        if self.shortcut:
            out = queries + self.attn.out_drop(self.attn.gamma1(out))
        else:
            out = self.attn.gamma1(out)
        return self.ffn(self.ln2(out), identity=out)

    def _attend_to_image(
        self, queries: Tensor, semantic: Tensor, image: Tensor, layout: SemanticLayout
    ) -> Tensor:
        keys, visible = image, None
        if self.with_own_keys:
            keys = torch.cat((semantic, image), dim=1)
            visible = layout.semantic_mask(image.device)
            if visible is not None:
                visible = torch.cat((visible, visible.new_ones(image.shape[1])))[None, None, None]
        query = self.attn.project_q(self.ln1(queries))
        return self.attn.mix(query, *self.attn.project_kv(self.ln1(keys)), visible)[0]

    def _attend_to_windows(
        self, queries: Tensor, semantic: Tensor, image: Tensor, layout: SemanticLayout, reach: int
    ) -> Tensor:
        query = self._by_window(self.attn.project_q(self.ln1(queries)), layout)
        by_token = self.attn.project_kv(self.ln1(image))
        fill: Iterable[Tensor | None] = (None, None)
        if layout.pad_mask != 'exact':
            # What a token of zeros is after the norm
            bias = self.ln1(image.new_zeros(1, 1, image.shape[-1]))
            fill = (x.flatten() for x in self.attn.project_kv(bias))
        key, value = [
            layout.key_windows(_merge_heads(x), reach, constant)
            .unflatten(2, (self.attn.num_heads, -1))
            .transpose(1, 2)
            for x, constant in zip(by_token, fill)
        ]
        visible = layout.image_mask(reach, image.device)
        if self.with_own_keys:
            own = self.attn.project_kv(layout.split(self.ln1(semantic)))
            key, value = [torch.cat(pair, dim=2) for pair in zip(own, (key, value))]
            if visible is not None:
                own_visible = layout.semantic_mask(image.device)
                num_windows, num_own = len(visible), layout.num_semantic**2
                if own_visible is None:
                    own_visible = visible.new_ones(num_windows, num_own)
                else:
                    own_visible = layout.split(own_visible[None, :, None]).flatten(1)
                visible = torch.cat((own_visible, visible), dim=1)
        if visible is not None:
            visible = visible[:, None, None].repeat(image.shape[0], 1, 1, 1)
        return layout.join(self.attn.mix(query, key, value, visible)[0])

    def _by_window(self, x: Tensor, layout: SemanticLayout) -> Tensor:
        """``(B, heads, S, d)`` to ``(B * num_windows, heads, s * s, d)``."""
        windows = layout.split(_merge_heads(x))
        return windows.unflatten(2, (self.attn.num_heads, -1)).transpose(1, 2)


class SemanticEncoderLayer(CrossEncoderLayer):
    """Self-attention among the semantic tokens of each window, or of the image.

    Args:
        *args: See :class:`TransformerEncoderLayer`.
        local (bool): Whether only tokens of one window see each other. Defaults to False.
        relative_side (int, optional): Side of the map that a relative position bias covers: the
            window's with ``local``, else that of the whole semantic map. None for no bias.
        **kwargs: See :class:`TransformerEncoderLayer`.
    """

    def __init__(
        self, *args: Any, local: bool = False, relative_side: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.local = local
        self.relative_side = relative_side
        self.relative_position = (
            RelativePositionBias(relative_side, self.attn.num_heads) if relative_side else None
        )

    def forward(self, semantic: Tensor, layout: SemanticLayout) -> Tensor:
        """Semantic tokens ``(B, S, C)`` in raster order to the same."""
        mask = layout.semantic_mask(semantic.device)
        if self.local:
            if mask is not None:
                mask = layout.split(mask[None, :, None]).flatten(1)[:, None, None]
                mask = mask.repeat(semantic.shape[0], 1, 1, 1)
            x = layout.split(semantic)
        else:
            x = semantic
            mask = None if mask is None else mask[None, None, None]
        if self.relative_position is not None:
            mask = _relative_bias(self.relative_position(), x, mask)
        x = super().forward(x, attn_bias=mask)
        return layout.join(x) if self.local else x


class SemanticTokenRecovery(CrossEncoderLayer):
    """Image tokens attend to the semantic tokens around their window (STViT-R, Sec. 3.4).

    Runs as one dense masked attention: neighbourhoods cover most of the map, so this is cheaper
    than gathering them.

    Args:
        *args: See :class:`TransformerEncoderLayer`.
        reach (int, optional): Side of the neighbourhood in semantic tokens; None for the map.
        **kwargs: See :class:`TransformerEncoderLayer`.
    """

    def __init__(self, *args: Any, reach: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reach = reach

    def forward(self, image: Tensor, semantic: Tensor, layout: SemanticLayout) -> Tensor:
        """Image tokens ``(B, H * W, C)`` and semantic tokens ``(B, S, C)`` to image tokens."""
        bias = layout.recovery_bias(self.reach, image.device)
        if bias is not None:
            if bias.shape[1] > semantic.shape[1]:
                semantic = torch.cat((semantic, torch.zeros_like(semantic[:, :1])), dim=1)
            bias = bias.to(image.dtype)[None, None]
        return super().forward(image, semantic, bias)


def _convolve(conv: nn.Conv2d, windows: Tensor) -> Tensor:
    side = round(windows.shape[1] ** 0.5)
    maps = windows.transpose(1, 2).unflatten(2, (side, side))
    return conv(maps).flatten(2).transpose(1, 2)


def _relative_bias(bias: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
    if bias.shape[-1] != x.shape[1]:
        raise ValueError(
            f'The relative position bias is for {bias.shape[-1]} semantic tokens, got '
            f'{x.shape[1]}; set img_size to the input size or relative_pos=False'
        )
    bias = bias[None].to(x.dtype)
    return bias if mask is None else bias.masked_fill(~mask, float('-inf'))


def _merge_heads(x: Tensor) -> Tensor:
    """``(B, heads, N, d)`` to ``(B, N, heads * d)``."""
    return x.transpose(1, 2).flatten(2)
