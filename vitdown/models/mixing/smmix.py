"""SMMix (ICCV 2023, arXiv 2212.12977): where to cut and paste, the labels, the losses."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TokenGeometry:
    """Where the tokens of an image lie.

    Attributes:
        grid (tuple[int, int]): Tokens ``(h, w)``.
        stride (tuple[int, int]): Pixels from one token to the next.
        patch (tuple[int, int]): Pixels that a token sees; more than the stride if they overlap.
    """

    grid: tuple[int, int]
    stride: tuple[int, int]
    patch: tuple[int, int]


def token_geometry(backbone: nn.Module, image: tuple[int, int], num_tokens: int) -> TokenGeometry:
    """Geometry of the last tokens of a backbone.

    Args:
        backbone (nn.Module): With a convolution ``patch_embed.projection``, or one that halves the
            image several times.
        image (tuple[int, int]): Size ``(H, W)`` in pixels.
        num_tokens (int): Number of patch tokens.

    Raises:
        ValueError: If the tokens are no regular grid that begins at the image's corner.
    """
    conv = getattr(getattr(backbone, 'patch_embed', None), 'projection', None)
    if isinstance(conv, nn.Conv2d) and tuple(conv.padding) == (0, 0):
        patch, stride = conv.kernel_size, conv.stride
        grid = tuple((side - p) // s + 1 for side, p, s in zip(image, patch, stride))
        if grid[0] * grid[1] == num_tokens:
            if patch == stride and any(side % s for side, s in zip(image, stride)):
                raise ValueError(
                    f'Images of {image[0]}x{image[1]} pixels are no multiple of the patch '
                    f'{patch[0]}x{patch[1]}; resize them'
                )
            return TokenGeometry(grid, tuple(stride), tuple(patch))
    stride = math.isqrt(image[0] * image[1] // num_tokens)
    grid = (image[0] // stride, image[1] // stride)
    if any(side % stride for side in image) or grid[0] * grid[1] != num_tokens:
        raise ValueError(
            f'{num_tokens} tokens of {type(backbone).__name__} are no grid of square cells in '
            f'images of {image[0]}x{image[1]} pixels'
        )
    return TokenGeometry(grid, (stride, stride), (stride, stride))


@dataclass(frozen=True)
class Regions:
    """Windows of one size, one pair an image; indices count windows row by row.

    Attributes:
        size (tuple[int, int]): ``(rows, columns)`` in tokens.
        target (Tensor): ``(B,)`` where each image is pasted over.
        source (Tensor): ``(B,)`` what each image gives to its partner.
    """

    size: tuple[int, int]
    target: Tensor
    source: Tensor


def region_scores(scores: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Sum of the token scores in every window.

    Args:
        scores (Tensor): ``(B, h * w)``.
        grid (tuple[int, int]): ``(h, w)``.
        size (tuple[int, int]): ``(rows, columns)`` of a window.

    Returns:
        Tensor: ``(B, (h - rows + 1) * (w - columns + 1))``, row by row.
    """
    maps = scores.float().unflatten(1, grid)[:, None]
    return F.avg_pool2d(maps, size, stride=1, divisor_override=1).flatten(1)


def pick_regions(scores: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Regions:
    """The least attended window of each image is pasted over, the most attended one is given.

    Arguments as in :func:`region_scores`.
    """
    sums = region_scores(scores, grid, size)
    return Regions(size, target=sums.argmin(dim=1), source=sums.argmax(dim=1))


def _corner(window: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row and column ``(B,)`` of the first token of each window."""
    columns = grid[1] - size[1] + 1
    return window // columns, window % columns


def region_mask(window: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Tokens of each window: bool ``(B, h * w)``."""
    inside = [
        (positions >= first[:, None]) & (positions < first[:, None] + side)
        for first, side, positions in zip(
            _corner(window, grid, size),
            size,
            (torch.arange(side, device=window.device) for side in grid),
        )
    ]
    return (inside[0][:, :, None] & inside[1][:, None]).flatten(1)


def flip_partner(batch: int, device: torch.device | None = None) -> Tensor:
    """Partner of each image: the last one's is the first."""
    return torch.arange(batch - 1, -1, -1, device=device)


def paste_regions(x: Tensor, regions: Regions, partner: Tensor, geometry: TokenGeometry) -> Tensor:
    """Paste the partner's most attended region over each image's least attended one.

    A rigid copy of the pixels that the tokens of the region see; where patches overlap, tokens at
    its border see both images.

    Args:
        x (Tensor): Images ``(B, C, H, W)``; left as they are.
        regions (Regions): Windows of the clean images.
        partner (Tensor): ``(B,)`` who gives.
        geometry (TokenGeometry): Where the tokens lie.

    Returns:
        Tensor: ``(B, C, H, W)``.
    """
    block = [
        (side - 1) * stride + patch
        for side, stride, patch in zip(regions.size, geometry.stride, geometry.patch)
    ]
    pixels = [torch.arange(side, device=x.device) for side in block]

    def positions(window: Tensor) -> Tensor:
        """Flat pixel indices ``(B, 1, rows * columns)``."""
        row, column = _corner(window, geometry.grid, regions.size)
        rows = (row * geometry.stride[0])[:, None] + pixels[0]
        columns = (column * geometry.stride[1])[:, None] + pixels[1]
        return (rows[:, :, None] * x.shape[3] + columns[:, None]).flatten(1)[:, None]

    flat, channels = x.flatten(2), x.shape[1]
    given = flat.gather(2, positions(regions.source).expand(-1, channels, -1))[partner]
    index = positions(regions.target).expand(-1, channels, -1)
    return flat.scatter(2, index, given).view_as(x)


def mix_images(x: Tensor, partner: Tensor, lam: float) -> Tensor:
    """Mixup: ``lam`` of each image and the rest of its partner."""
    return x if lam == 1 else x[partner].mul_(1 - lam).add_(x * lam)


def smooth_onehot(labels: Tensor, num_classes: int, smoothing: float = 0.1) -> Tensor:
    """Labels ``(B,)`` as scores ``(B, K)``: ``smoothing / K`` everywhere, the rest at the label."""
    off = smoothing / num_classes
    scores = torch.full((len(labels), num_classes), off, device=labels.device)
    return scores.scatter_(1, labels[:, None], 1 - smoothing + off)


def masked_token_means(tokens: Tensor, masks: Tensor) -> Tensor:
    """Means of tokens in float32.

    Args:
        tokens (Tensor): ``(B, N, C)``.
        masks (Tensor): ``(B, M, N)``; no row is empty.

    Returns:
        Tensor: ``(B, M, C)``.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        weights = masks.float() / masks.sum(dim=2, keepdim=True)
        return weights @ tokens.float()


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of logits ``(B, K)`` with scores ``(B, K)``."""
    return F.cross_entropy(logits.float(), target)


def smmix_losses(
    logits: Tensor,
    region_logits: Tensor,
    clean_logits: Tensor,
    target: Tensor,
    partner: Tensor,
    lam: float,
) -> dict[str, Tensor]:
    """What SMMix adds to the cross-entropy of the mixed label.

    Args:
        logits (Tensor): ``(B, K)`` of the mixed images.
        region_logits (Tensor): ``(B, 2, K)`` of the mean tokens of the image's own part and of the
            pasted region.
        clean_logits (Tensor): ``(B, K)`` of the clean images; no gradient passes.
        target (Tensor): Scores ``(B, K)`` of the clean images.
        partner (Tensor): ``(B,)``.
        lam (float): Share of the image itself.

    Returns:
        dict: ``loss_fine`` (each part has a label of its own) and ``loss_con`` (the mixed image's
        prediction is drawn to the mix of the clean ones', in logit space).
    """
    own, pasted = region_logits.unbind(dim=1)
    fine = soft_cross_entropy(own, target) + soft_cross_entropy(pasted, target[partner])
    clean_logits = clean_logits.detach().float()
    mixed = lam * clean_logits + (1 - lam) * clean_logits[partner]
    consistency = F.kl_div(
        logits.float().log_softmax(dim=1),
        mixed.log_softmax(dim=1),
        reduction='batchmean',
        log_target=True,
    )
    return dict(loss_fine=0.5 * fine, loss_con=consistency)
