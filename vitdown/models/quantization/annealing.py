"""Confidence-guided annealing (CGA) of OFQ, arXiv 2302.02210, Sec. 4.3."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .functional import cga_free_mask
from .modules import QKRProjection, QuantLinear
from .quantizers import StatsQuantizer
from .settings import fits

ON_QK = ('none', 'grad')


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

    def free(self, boundary_range: float) -> Tensor:
        """Which entries train, bool of the parameter's shape; see :func:`cga_free_mask`."""
        latent = self.parameter.detach()[self.first_row :]
        mask = cga_free_mask(latent, self.bits, boundary_range)
        if not self.first_row:
            return mask
        return torch.cat((mask.new_ones(self.first_row, *mask.shape[1:]), mask))


def annealed_weights(
    model: nn.Module, targets: Sequence[str] | None = None
) -> list[AnnealedWeight]:
    """Weights that StatsQ quantizes: MLPs, values (or queries, keys and values), projections.

    Args:
        model (nn.Module): Quantized model.
        targets (Sequence[str], optional): Patterns of the names of layers, or of modules around
            them. Defaults to all.

    Raises:
        ValueError: If there are none, or none for a target.
    """
    weights = []
    for name, module in model.named_modules():
        quantizer = getattr(module, 'weight_quant', None)
        if not isinstance(quantizer, StatsQuantizer):
            continue
        if isinstance(module, (QuantLinear, QKRProjection)):
            first_row = sum(module.part_sizes[:2]) if isinstance(module, QKRProjection) else 0
            parameter = module.weight
            weights.append(AnnealedWeight(f'{name}.weight', parameter, quantizer.bits, first_row))
    if not weights:
        raise ValueError(
            f'{type(model).__name__} has no weights that StatsQ quantizes; CGA needs '
            "quant_cfg=dict(type='OFQ', w_quant='statsq', w_bits=...)"
        )
    if targets is None:
        return weights
    if isinstance(targets, str) or not targets:
        raise ValueError(f'targets must be a list of patterns, got {targets!r}')
    if unused := [t for t in targets if not any(fits(w.name, t) for w in weights)]:
        raise ValueError(
            f'targets: {type(model).__name__} has no weights that StatsQ quantizes in {unused}; '
            f'they are called {weights[0].name} ... {weights[-1].name}'
        )
    return [w for w in weights if any(fits(w.name, target) for target in targets)]


@torch.no_grad()
def mask_gradients(parameters: Iterable[nn.Parameter], masks: Iterable[Tensor]) -> None:
    """Zero the gradients of entries that are not free."""
    for parameter, free in zip(parameters, masks):
        parameter.grad.mul_(free)


@torch.no_grad()
def restore_frozen(
    parameters: Sequence[nn.Parameter], masks: Sequence[Tensor], before: Sequence[Tensor]
) -> None:
    """Give entries that are not free their former values: momentum and decay moved them."""
    for parameter, free, value in zip(parameters, masks, before):
        parameter.copy_(torch.where(free, parameter, value))


class ConfidenceGuidedAnnealing:
    """Holds every weight that is not near a threshold, at each step of an optimizer.

    Gradients are masked as soon as they are accumulated, so before they are clipped or averaged;
    around the optimizer's step the frozen entries are kept and put back. It doesn't matter how
    often gradients are accumulated, nor whether a loss scaler skips a step.

    Args:
        model (nn.Module): Quantized model.
        boundary_range (float): Half-width of the band around a threshold, in levels. Defaults to
            0.005.
        on_qk (str): What happens to the product of query and key weights: ``'none'`` as in the
            official code, or ``'grad'`` for a gradient that reaches only its free entries.
        targets (Sequence[str], optional): Which layers, see :func:`annealed_weights`; the others
            train freely. Defaults to all.

    Raises:
        ValueError: If no weight of the model is quantized by StatsQ, or none of a target.
    """

    def __init__(
        self,
        model: nn.Module,
        boundary_range: float = 0.005,
        on_qk: str = 'none',
        targets: Sequence[str] | None = None,
    ) -> None:
        if not 0 < boundary_range < 0.5:
            raise ValueError(
                f'boundary_range must be between 0 and 0.5 levels, got {boundary_range}'
            )
        if on_qk not in ON_QK:
            raise ValueError(f'on_qk must be one of {ON_QK}, got {on_qk!r}')
        self.weights = annealed_weights(model, targets)
        self.boundary_range = boundary_range
        self._products = []
        if on_qk == 'grad':
            names = {weight.name for weight in self.weights}
            self._products = [
                module.product_quant
                for name, module in model.named_modules()
                if isinstance(module, QKRProjection) and f'{name}.weight' in names
            ]
        self._masks: dict[int, Tensor] = {}
        self._before: list[Tensor] = []
        self._handles: list = []

    def attach(self, optimizer: Optimizer) -> None:
        """Begin."""
        for quantizer in self._products:
            quantizer.boundary_range = self.boundary_range
        for i, weight in enumerate(self.weights):
            self._handles.append(
                weight.parameter.register_post_accumulate_grad_hook(
                    lambda parameter, i=i: mask_gradients([parameter], [self._mask(i)])
                )
            )
        self._handles.append(optimizer.register_step_pre_hook(self._keep))
        self._handles.append(optimizer.register_step_post_hook(self._put_back))

    def detach(self) -> None:
        """End: all weights train again."""
        for handle in self._handles:
            handle.remove()
        for quantizer in self._products:
            quantizer.boundary_range = None
        self._handles.clear()
        self._masks.clear()

    def _mask(self, i: int) -> Tensor:
        # Weights stay as they are until the step, and so do the masks.
        if i not in self._masks:
            self._masks[i] = self.weights[i].free(self.boundary_range)
        return self._masks[i]

    def _keep(self, *_: object) -> None:
        for i, weight in enumerate(self.weights):
            self._mask(i)
            self._before.append(weight.parameter.detach().clone())

    def _put_back(self, *_: object) -> None:
        parameters = [weight.parameter for weight in self.weights]
        restore_frozen(parameters, [self._masks[i] for i in range(len(parameters))], self._before)
        self._masks.clear()
        self._before.clear()
