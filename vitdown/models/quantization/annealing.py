"""Confidence-guided annealing (CGA) of OFQ, arXiv 2302.02210, Sec. 4.3."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .functional import cga_free_mask
from .modules import QKRProjection, QuantLinear
from .quantizers import StatsQuantizer


@dataclass(frozen=True)
class AnnealedWeight:
    """Weight of which only entries near a threshold go on training.

    Attributes:
        name (str): Name of the parameter in its model.
        parameter (nn.Parameter): ``(O, I)``.
        bits (int): Bits of its quantizer.
        first_row (int): Rows before it (queries and keys under QKR) train freely.
    """

    name: str
    parameter: nn.Parameter
    bits: int
    first_row: int = 0

    def latent(self) -> Tensor:
        """The rows that are quantized."""
        return self.parameter.detach()[self.first_row :]

    def free(self, boundary_range: float) -> Tensor:
        """Which entries train, bool of the parameter's shape; see :func:`cga_free_mask`."""
        mask = cga_free_mask(self.latent(), self.bits, boundary_range)
        if not self.first_row:
            return mask
        return torch.cat((mask.new_ones(self.first_row, *mask.shape[1:]), mask))


def annealed_weights(model: nn.Module) -> list[AnnealedWeight]:
    """Weights that StatsQ quantizes: MLPs, values (or queries, keys and values), projections."""
    weights = []
    for name, module in model.named_modules():
        quantizer = getattr(module, 'weight_quant', None)
        if isinstance(module, (QuantLinear, QKRProjection)) and isinstance(
            quantizer, StatsQuantizer
        ):
            rows = module.value_weight().shape[0] if isinstance(module, QKRProjection) else None
            first = 0 if rows is None else module.weight.shape[0] - rows
            name = f'{name}.weight' if name else 'weight'
            weights.append(AnnealedWeight(name, module.weight, quantizer.bits, first))
    return weights


@torch.no_grad()
def mask_gradients(parameters: Iterable[nn.Parameter], masks: Iterable[Tensor]) -> None:
    """Zero the gradients of entries that are not free."""
    for parameter, free in zip(parameters, masks):
        if parameter.grad is not None:
            parameter.grad.mul_(free)


@torch.no_grad()
def restore_frozen(
    parameters: Sequence[nn.Parameter], masks: Sequence[Tensor], before: Sequence[Tensor]
) -> None:
    """Give entries that are not free their former values: momentum and decay moved them."""
    for parameter, free, value in zip(parameters, masks, before):
        parameter.copy_(torch.where(free, parameter, value))
