"""Which patches a model with token fusion has fused into one token, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from vitdown.models.option_checks import TOKEN_FUSION_HINT

_LINE = (255, 230, 0)
_TEXT = (30, 30, 30)
_GAP = 6
_CAPTION = 16


@dataclass(frozen=True)
class FusionTrace:
    """Token fusion of one image.

    Attributes:
        groups (np.ndarray): ``(L, h, w)``, after each layer the token that each patch is part of.
        num_tokens (tuple[int, ...]): Number of tokens after each layer, class token included.
        num_inputs (int): Number of tokens that entered the first layer.
    """

    groups: np.ndarray
    num_tokens: tuple[int, ...]
    num_inputs: int


@torch.no_grad()
def trace_fusion(
    backbone: nn.Module, inputs: Tensor, **side_information: Tensor
) -> list[FusionTrace]:
    """Run a backbone and note how tokens are fused.

    Args:
        backbone (VisionTransformer): With ``token_fusion``, in evaluation mode.
        inputs (Tensor): Normalised images ``(B, 3, H, W)``.
        **side_information: ``camera_ids`` and ``view_ids`` for models that embed them.

    Raises:
        ValueError: If the backbone has no token fusion.
    """
    policy = getattr(backbone, 'token_fusion', None)
    if policy is None:
        raise ValueError(f'This {type(backbone).__name__} fuses no tokens; {TOKEN_FUSION_HINT}')
    outs = []
    handle = policy.register_forward_hook(lambda module, args, out: outs.append(out[:2]))
    try:
        feats = backbone.forward_tokens(inputs, **side_information)
    finally:
        handle.remove()
    height, width = feats.patch_resolution
    own = torch.arange(height * width, device=inputs.device).expand(len(inputs), -1)
    # Sources count the tokens before the patches too, which all stay in front.
    sources = [
        own if state.source is None else state.source[:, -height * width :] for _, state in outs
    ]
    groups = torch.stack(sources, dim=1).unflatten(2, (height, width)).cpu().numpy()
    counts = tuple(tokens.shape[1] for tokens, _ in outs)
    num_inputs = height * width + backbone.num_extra_tokens
    return [FusionTrace(image_groups, counts, num_inputs) for image_groups in groups]


def draw_groups(image: np.ndarray, groups: np.ndarray, scale: int = 2) -> Image.Image:
    """Patches of one token in their mean colour, with lines between different tokens.

    Args:
        image (np.ndarray): RGB ``(H, W, 3)`` uint8, as the model sees it.
        groups (np.ndarray): ``(h, w)`` integers. Patches that overlap are drawn side by side.
        scale (int): Enlargement. Defaults to 2.

    Returns:
        Image: ``(scale * H, scale * W)``.
    """
    height, width = (scale * side for side in image.shape[:2])
    rows = np.arange(height) * groups.shape[0] // height
    columns = np.arange(width) * groups.shape[1] // width
    labels = groups[rows[:, None], columns]
    pixels = np.asarray(Image.fromarray(image).resize((width, height))).astype(float)
    _, index = np.unique(labels, return_inverse=True)
    index = index.reshape(-1)
    sums = np.stack([np.bincount(index, pixels[..., c].ravel()) for c in range(3)], axis=1)
    filled = (sums / np.bincount(index)[:, None])[index].reshape(pixels.shape)
    border = np.zeros(labels.shape, bool)
    border[1:] |= labels[1:] != labels[:-1]
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    filled[border] = _LINE
    return Image.fromarray(filled.round().astype(np.uint8))


def draw_fusion(
    image: np.ndarray, trace: FusionTrace, layers: Iterable[int] | None = None, scale: int = 2
) -> Image.Image:
    """An image and its tokens after some layers, side by side, with the number of tokens.

    Args:
        image (np.ndarray): RGB ``(H, W, 3)`` uint8, as the model sees it.
        trace (FusionTrace): Its fusion.
        layers (Iterable[int], optional): From 0. Defaults to all that have fused tokens.
        scale (int): Enlargement. Defaults to 2.

    Raises:
        ValueError: If the model has no such layer.
    """
    num_layers = len(trace.num_tokens)
    if layers is None:
        before = (trace.num_inputs, *trace.num_tokens)
        layers = [i for i in range(num_layers) if trace.num_tokens[i] < before[i]]
    layers = list(layers)
    if unknown := [layer for layer in layers if not 0 <= layer < num_layers]:
        raise ValueError(f'The model has the layers 0 to {num_layers - 1}, not {unknown}')
    height, width = (scale * side for side in image.shape[:2])
    panels = [Image.fromarray(image).resize((width, height))]
    panels += [draw_groups(image, trace.groups[layer], scale) for layer in layers]
    captions = ['image', *(f'{i}: {trace.num_tokens[i]}' for i in layers)]
    return _side_by_side(panels, captions)


def _side_by_side(panels: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    width, height = panels[0].size
    size = (len(panels) * (width + _GAP) + _GAP, height + _CAPTION + 2 * _GAP)
    picture = Image.new('RGB', size, 'white')
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=11)
    for number, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        left = _GAP + number * (width + _GAP)
        picture.paste(panel, (left, _GAP))
        draw.text((left + 1, _GAP + height + 1), caption, fill=_TEXT, font=font)
    return picture
