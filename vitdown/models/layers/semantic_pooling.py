import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.models.utils import build_norm_layer
from torch import Tensor, nn

MODES = ('intra', 'max', 'avg')


def split_regions(x: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Cut a token map into a grid of equal regions.

    A region has ceil(H / rows) x ceil(W / columns) tokens; zeros around the map, as evenly as
    possible, make up the number.

    Args:
        x (Tensor): Tokens ``(B, H * W, C)`` in raster order.
        size (tuple[int, int]): ``(H, W)``.
        grid (tuple[int, int]): Number of regions ``(rows, columns)``.

    Returns:
        Tensor: ``(B, rows * columns, h, w, C)``.
    """
    sides = tuple(-(-length // number) for length, number in zip(size, grid))
    pads = []
    for length, number, side in zip(size[::-1], grid[::-1], sides[::-1]):
        missing = number * side - length
        pads += [missing // 2, missing - missing // 2]
    x = F.pad(x.unflatten(1, size), (0, 0, *pads))
    x = x.unflatten(2, (grid[1], sides[1])).unflatten(1, (grid[0], sides[0]))
    return x.transpose(2, 3).flatten(1, 2)


def regions_fit(length: int, number: int) -> bool:
    """Whether no region along a side is padding alone where :func:`split_regions` cuts it.

    Args:
        length (int): Tokens along the side.
        number (int): Regions along the side.
    """
    side = -(-length // number)
    missing = number * side - length
    return missing - missing // 2 < side


class RegionPooling(BaseModule):
    """One token for each region of a token map: the start of STViT-DeiT's semantic tokens.

    ``'intra'`` is the intra-window pooling of Sec. 3.2 as its author published it: a small network
    (depth-wise 3x3 convolution, norm, GELU, projection to one channel) that sees nothing but the
    region weighs its tokens by a softmax. ``'max'`` and ``'avg'`` have no parameters. Padding has
    (almost) no weight; a region of padding alone gives zeros. The inter-window part of the paper
    is not described well enough to be implemented.

    Args:
        embed_dims (int): Channels C.
        grid (tuple[int, int]): Number of regions ``(rows, columns)``.
        mode (str): ``'intra'``, ``'max'`` or ``'avg'``. Defaults to ``'intra'``.
        norm_cfg (dict): Norm of the network. Defaults to LayerNorm with eps 1e-6.

    Raises:
        ValueError: For another mode.
    """

    pad_logit = -100.0

    def __init__(
        self,
        embed_dims: int,
        grid: tuple[int, int],
        mode: str = 'intra',
        norm_cfg: dict = dict(type='LN', eps=1e-6),
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f'pool must be one of {MODES}, got {mode!r}')
        self.grid = (grid[0], grid[1])
        self.mode = mode
        if mode == 'intra':
            self.conv = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)
            self.norm = build_norm_layer(norm_cfg, embed_dims)
            self.score = nn.Linear(embed_dims, 1, bias=False)

    def weights(self, regions: Tensor, inside: Tensor) -> Tensor:
        """Softmax weights ``(B, R, h * w)`` of the tokens in regions ``(B, R, h, w, C)``."""
        maps = regions.flatten(0, 1).permute(0, 3, 1, 2)
        maps = self.conv(maps).permute(0, 2, 3, 1)
        logits = self.score(F.gelu(self.norm(maps))).flatten(1).unflatten(0, regions.shape[:2])
        return (logits + self.pad_logit * ~inside).softmax(dim=-1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens ``(B, H * W, C)`` of a map ``(H, W)`` to ``(B, rows * columns, C)``."""
        regions = split_regions(x, size, self.grid)
        inside = torch.ones(1, x.shape[1], 1, dtype=torch.bool, device=x.device)
        inside = split_regions(inside, size, self.grid).flatten(2)
        tokens = regions.flatten(2, 3)
        if self.mode == 'intra':
            weights = self.weights(regions, inside)
        elif self.mode == 'avg':
            weights = inside / inside.sum(dim=-1, keepdim=True).clamp(min=1)
        else:
            lowest = tokens.masked_fill(~inside[..., None], float('-inf')).amax(dim=2)
            return lowest.masked_fill(~inside.any(dim=-1)[..., None], 0.0)
        return (weights.to(tokens.dtype)[..., None, :] @ tokens).squeeze(-2)
