from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mix:
    """What is drawn for one batch.

    Attributes:
        lam (float): Share of the image itself; its partner has the rest.
        size (tuple[int, int], optional): ``(rows, columns)`` of the pasted region in tokens; None
            for Mixup.
    """

    lam: float
    size: tuple[int, int] | None = None


def region_sizes(
    grid: tuple[int, int], ratio: tuple[float, float] = (0.25, 0.75)
) -> list[tuple[int, int]]:
    """Sizes of a region that may be drawn.

    The shorter axis has the integers from ``int(side * ratio[0])`` to ``int(side * ratio[1])``;
    the longer one is in proportion. A region is never empty nor the whole image.

    Args:
        grid (tuple[int, int]): Tokens ``(h, w)`` of an image.
        ratio (tuple[float, float]): Smallest and largest share of an axis.

    Raises:
        ValueError: If no size is left.
    """
    short, long = min(grid), max(grid)
    first, last = max(1, int(short * ratio[0])), min(short - 1, int(short * ratio[1]))
    if first > last:
        raise ValueError(
            f'A grid of {grid[0]}x{grid[1]} tokens has no region between {ratio[0]} and {ratio[1]} '
            'of its sides; use larger images, smaller patches or another region_ratio'
        )
    sides = [(side, max(1, round(side * long / short))) for side in range(first, last + 1)]
    return sides if grid[0] <= grid[1] else [(b, a) for a, b in sides]


def draw_mix(
    get_grid: Callable[[], tuple[int, int]],
    uniform: Callable[[], float],
    choice: Callable[[Sequence[tuple[int, int]]], Sequence[int]],
    beta: Callable[[float, float], float],
    switch_prob: float = 0.5,
    mixup_alpha: float = 0.8,
    region_ratio: tuple[float, float] = (0.25, 0.75),
) -> Mix:
    """Draw how to mix a batch: a region of the partner, or Mixup.

    The generators are arguments: ``RandomState.rand``, ``Random.choice`` and ``RandomState.beta``,
    called in this order, replay the official code.

    Args:
        get_grid (Callable): Tokens ``(h, w)`` of an image; called only if a region is pasted.
        uniform (Callable): Draws from [0, 1).
        choice (Callable): Draws one item of a sequence.
        beta (Callable): Draws from a beta distribution.
        switch_prob (float): Probability of pasting a region. Defaults to 0.5.
        mixup_alpha (float): Parameter of Mixup's distribution. Defaults to 0.8.
        region_ratio (tuple[float, float]): See :func:`region_sizes`.
    """
    if uniform() < switch_prob:
        grid = get_grid()
        height, width = choice(region_sizes(grid, region_ratio))
        return Mix(1 - height * width / (grid[0] * grid[1]), (height, width))
    return Mix(float(beta(mixup_alpha, mixup_alpha)))
