"""What a block costs, as a function of its sizes: multiply-adds, parameters, measured time.

A cost is called with points ``(n, 5)`` - channels of the embedding, heads, channels of a head's
queries and of its values, hidden channels of the MLP - and gives ``(n,)`` float64. What all blocks
share (patch embedding, final norm, head) is left out, as in the authors' latency table.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from .structures import KINDS, Layer, Sizes

BlockCost = Callable[[np.ndarray], np.ndarray]


class MultiplyAdds:
    """Multiply-adds of one block and image.

    Args:
        num_tokens (int): Tokens N of an image.
    """

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """``(n, 5)`` sizes to ``(n,)`` multiply-adds."""
        emb, heads, qk, v, mlp = np.asarray(points, dtype=np.float64).T
        tokens = self.num_tokens
        linear = emb * heads * (2 * qk + 2 * v) + 2 * emb * mlp
        return tokens * linear + tokens**2 * heads * (qk + v)


class Parameters:
    """Parameters of one block with biases and two norms."""

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """``(n, 5)`` sizes to ``(n,)`` parameters."""
        emb, heads, qk, v, mlp = np.asarray(points, dtype=np.float64).T
        attention = (emb + 1) * heads * (2 * qk + v) + heads * v * emb + emb
        return attention + (emb + 1) * mlp + mlp * emb + emb + 4 * emb


class NormalizedCost:
    """A cost divided by that of the whole model before pruning.

    With it, a cost weight means the same on every machine: 5e-4 a second of the authors' table,
    whose full model takes 0.97 s, is 4.85e-4.

    Args:
        cost (Callable): A block's cost.
        sizes (Sizes): Sizes of the model before pruning.
    """

    def __init__(self, cost: BlockCost, sizes: Sizes) -> None:
        self.cost = cost
        self.full = total_cost(cost, sizes)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """``(n, 5)`` sizes to shares of the full model's cost ``(n,)``."""
        return self.cost(points) / self.full


def total_cost(cost: BlockCost, sizes: Sizes) -> float:
    """Cost of all blocks."""
    return float(cost(sizes.points().numpy()).sum())


def unit_savings(
    cost: BlockCost, layers: Sequence[Layer], sizes: Sizes, min_sizes: Mapping[str, int]
) -> Tensor:
    """What one unit less would save in each layer.

    Args:
        cost (Callable): A block's cost.
        layers (Sequence[Layer]): See :func:`vit_layers`.
        sizes (Sizes): Present sizes.
        min_sizes (Mapping[str, int]): By kind, sizes at or below which a layer saves nothing; no
            limit for kinds left out.

    Returns:
        Tensor: ``(layers,)`` float64. For the embedding, the sum over all blocks.
    """
    points = sizes.points().numpy()
    now = cost(points)
    savings = {}
    for column, kind in enumerate(KINDS):
        less = points.copy()
        less[:, column] -= less[:, column] > min_sizes.get(kind, 0)
        savings[kind] = now - cost(less)
    return torch.tensor(
        [
            savings['emb'].sum() if layer.block is None else savings[layer.kind][layer.block]
            for layer in layers
        ],
        dtype=torch.float64,
    )
