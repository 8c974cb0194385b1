import math

from mmpretrain.models.utils import resize_pos_embed as _resize_between_grids
from torch import Tensor


def infer_grid(num_patches: int, target_grid: tuple[int, int]) -> tuple[int, int]:
    """Patch grid of a position embedding that doesn't state its own.

    A square number means a square grid (every ImageNet checkpoint); otherwise the grid with the
    aspect ratio of ``target_grid``.

    Args:
        num_patches (int): Number of patch positions in the checkpoint.
        target_grid (tuple[int, int]): Grid ``(h, w)`` of the model that loads it.

    Raises:
        ValueError: If neither applies.
    """
    side = math.isqrt(num_patches)
    if side * side == num_patches:
        return side, side
    height, width = target_grid
    scale = math.gcd(height, width)
    unit_height, unit_width = height // scale, width // scale
    factor = math.isqrt(num_patches // (unit_height * unit_width))
    if factor * factor * unit_height * unit_width == num_patches:
        return factor * unit_height, factor * unit_width
    raise ValueError(
        f'Cannot tell the patch grid of a position embedding with {num_patches} patches: it is '
        f"neither square nor of the aspect ratio of the model's grid {height}x{width}. Resize it "
        'with vitdown.models.layers.resize_pos_embed(pos_embed, dst_grid, src_grid=(h, w)) first.'
    )


def resize_pos_embed(
    pos_embed: Tensor,
    dst_grid: tuple[int, int],
    src_grid: tuple[int, int] | None = None,
    mode: str = 'bilinear',
    num_extra_tokens: int = 1,
) -> Tensor:
    """Interpolate a position embedding to another patch grid.

    Extra tokens (class, distillation) are copied. Bilinear without antialiasing is what TransReID
    loads its ImageNet weights with.

    Args:
        pos_embed (Tensor): ``(1, num_extra_tokens + h * w, C)``.
        dst_grid (tuple[int, int]): Target grid ``(h, w)``.
        src_grid (tuple[int, int], optional): Source grid. Inferred by :func:`infer_grid` if None.
        mode (str): ``'bilinear'`` or ``'bicubic'``. Defaults to ``'bilinear'``.
        num_extra_tokens (int): Leading tokens without a position. Defaults to 1.

    Returns:
        Tensor: ``(1, num_extra_tokens + dst_h * dst_w, C)``.
    """
    if src_grid is None:
        src_grid = infer_grid(pos_embed.shape[1] - num_extra_tokens, dst_grid)
    return _resize_between_grids(pos_embed, src_grid, dst_grid, mode, num_extra_tokens)
