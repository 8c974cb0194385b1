"""Where a ViT looks: attention rollout and the patches selected by it, over the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from mmpretrain.structures import DataSample
from PIL import Image, ImageDraw
from torch import Tensor, nn

from vitdown.models.layers import attention_rollout_cls, select_top_r

DEFAULT_RATIO = 0.3
_COLOURS = matplotlib.colormaps['turbo']
_OUTLINE = (255, 230, 0)


@dataclass(frozen=True)
class AttentionMap:
    """Attention of one image's class token.

    Attributes:
        scores (np.ndarray): ``(h, w)`` rollout of each patch.
        selected (np.ndarray): ``(R,)`` indices of the patches with the highest scores, row by row
            from the upper left corner; the highest first.
        patch_size (tuple[int, int]): Height and width of a patch in pixels.
        stride (tuple[int, int]): Steps between patches in pixels.
    """

    scores: np.ndarray
    selected: np.ndarray
    patch_size: tuple[int, int]
    stride: tuple[int, int]

    def boxes(self) -> np.ndarray:
        """Corners ``(R, 4)`` of the selected patches: left, top, right, bottom, exclusive."""
        rows, columns = np.divmod(self.selected, self.scores.shape[1])
        top, left = rows * self.stride[0], columns * self.stride[1]
        return np.stack((left, top, left + self.patch_size[1], top + self.patch_size[0]), axis=1)


@torch.no_grad()
def attention_maps(
    model: nn.Module,
    inputs: Tensor,
    data_samples: Sequence[DataSample] | None = None,
    ratio: float | None = None,
) -> list[AttentionMap]:
    """Attention rollout of a model on plain ViT, with any head.

    Args:
        model (ReIdentifier | ImageClassifier): In evaluation mode.
        inputs (Tensor): Normalised images ``(B, 3, H, W)``.
        data_samples (Sequence[DataSample], optional): Cameras and views, for models with side
            information.
        ratio (float, optional): Share of the patches that are selected. Defaults to that of the
            head's GLCA branch, else 0.3.

    Raises:
        TypeError: If the backbone does not offer its attention.
    """
    backbone = model.backbone
    if not hasattr(backbone, 'forward_tokens'):
        raise TypeError(
            f'{type(backbone).__name__} does not offer its attention; use a model on '
            'VisionTransformer'
        )
    if ratio is None:
        ratio = getattr(getattr(model.head, 'glca', None), 'ratio', DEFAULT_RATIO)
    side = model.side_information(data_samples) if hasattr(model, 'side_information') else {}
    feats = backbone.forward_tokens(inputs, need_attention='factors', **side)
    scores = attention_rollout_cls(feats.attentions)[:, 1:]
    selected = select_top_r(scores, ratio).cpu().numpy()
    grids = scores.unflatten(1, feats.patch_resolution).cpu().numpy()
    patches = _patch_geometry(backbone, inputs.shape[1:], feats.patch_resolution)
    return [AttentionMap(grid, indices, *patches) for grid, indices in zip(grids, selected)]


def _patch_geometry(
    backbone: nn.Module, image: Sequence[int], grid: Sequence[int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size of the patches and steps between them, for images ``(C, H, W)``.

    Even tiles where the patches are not cut by a convolution.
    """
    projection = getattr(backbone.patch_embed, 'projection', None)
    # A stem may lie before the convolution, whose pixels are not the image's then.
    if isinstance(projection, nn.Conv2d) and projection.in_channels == image[0]:
        return projection.kernel_size, projection.stride
    tile = (image[1] // grid[0], image[2] // grid[1])
    return tile, tile


def draw_rollout(image: np.ndarray, attention: AttentionMap, opacity: float = 0.5) -> np.ndarray:
    """Rollout as colours over the image, from blue (the least of this image) to red.

    Pixels at the right and lower edge that no patch reaches stay as they are.

    Args:
        image (np.ndarray): ``(H, W, 3)`` RGB uint8, as the model saw it.
        attention (AttentionMap): Of this image.
        opacity (float): Of the colours.
    """
    scores = attention.scores.astype(np.float32)
    for axis in (0, 1):
        scores = _between_centres(scores, axis, attention.patch_size[axis], attention.stride[axis])
    height, width = (min(size) for size in zip(image.shape, scores.shape))
    scores = scores[:height, :width]
    low, high = attention.scores.min(), attention.scores.max()
    scaled = (scores - low) / max(high - low, np.finfo(np.float32).tiny)
    colours = 255 * _COLOURS(scaled)[..., :3]
    picture = image.copy()
    mixed = (1 - opacity) * image[:height, :width] + opacity * colours
    picture[:height, :width] = np.rint(mixed)
    return picture


def _between_centres(scores: np.ndarray, axis: int, patch: int, stride: int) -> np.ndarray:
    """Scores of all pixels along an axis, linear between the centres of the patches."""
    count = scores.shape[axis]
    centres = stride * np.arange(count) + patch / 2
    pixels = np.arange((count - 1) * stride + patch) + 0.5
    return np.apply_along_axis(lambda line: np.interp(pixels, centres, line), axis, scores)


def draw_patches(image: np.ndarray, attention: AttentionMap) -> np.ndarray:
    """Selected patches outlined, all else darkened; arguments as in :func:`draw_rollout`."""
    boxes = attention.boxes().tolist()
    dark = Image.fromarray((0.4 * image).astype(np.uint8))
    whole = Image.fromarray(image)
    for box in boxes:
        dark.paste(whole.crop(box), box[:2])
    draw = ImageDraw.Draw(dark)
    for left, top, right, bottom in boxes:
        draw.rectangle((left, top, right - 1, bottom - 1), outline=_OUTLINE)
    return np.asarray(dark)


def draw_attention(image: np.ndarray, attention: AttentionMap, scale: int = 2) -> Image.Image:
    """Image, rollout and selected patches side by side, each enlarged by ``scale``."""
    panels = (image, draw_rollout(image, attention), draw_patches(image, attention))
    height, width = scale * image.shape[0], scale * image.shape[1]
    gap = 6
    picture = Image.new('RGB', (3 * width + 2 * gap, height), 'white')
    for number, panel in enumerate(panels):
        enlarged = Image.fromarray(panel).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(enlarged, (number * (width + gap), 0))
    return picture
