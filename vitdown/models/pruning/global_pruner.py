from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from mmengine.dist import broadcast
from torch import Tensor, nn

from ..option_checks import check_integers
from .cost import BlockCost, NormalizedCost, total_cost, unit_savings
from .ranking import (
    NVIT_GROUP_SIZES,
    check_group_sizes,
    prune_groups,
    rank_index,
    regularise,
    update_average,
)
from .saliency import magnitude_scores, member_axes, random_scores, taylor_gate_scores
from .structures import KINDS, Sizes, ViTStructure

SALIENCIES = ('nvit', 'paper', 'magnitude', 'random')


class GlobalPruner:
    """Global structural pruning with one ranking over all layers, NViT (arXiv 2110.04869).

    Scores are accumulated after every optimisation step (:meth:`accumulate`); an :meth:`event`
    averages them, blends the mean into a moving average, subtracts what a unit costs, and prunes
    the groups of units at or below one global threshold. Pruned weights are kept at zero by
    :meth:`apply_masks`. All processes of a distributed run take the decision of the first.

    Args:
        model (nn.Module): See :class:`ViTStructure`.
        cost (Callable): Cost of a block: :class:`LatencyTable`, :class:`MultiplyAdds` or
            :class:`Parameters`.
        cost_weight (float): Weight of the cost against the importance; 0 ranks by importance.
        normalize_cost (bool): Whether the cost is divided by the full model's. Defaults to True.
        prune_per_event (int): Units by which the rank of the threshold grows at each event, given
            groups of ``rank_unit``.
        rank_unit (int): Units of a group by which ranks are counted. Defaults to 16.
        max_units (int, optional): Bound on the rank of the threshold, in units.
        group_sizes (Mapping[str, int], optional): Units pruned together, by kind, where they
            differ from the defaults (emb 16, head 2, qk 8, v 8, mlp 16).
        kinds (Sequence[str]): What to prune: ``'emb'``, ``'head'``, ``'qk'``, ``'v'``, ``'mlp'``.
        momentum (float): Of the moving average over events.
        momentum_reset (bool): Whether the average is set to zero after the first event, as in the
            authors' code, where the loss changes at that point.
        bias_correction (bool): Whether an average that grows from zero is scaled up.
        saliency (str): ``'nvit'`` or ``'paper'`` (see :func:`member_axes`), or a baseline:
            ``'magnitude'`` or ``'random'``.
        norm (Mapping[str, float], optional): See :func:`taylor_gate_scores`.
        count_pruned (bool): See :func:`prune_groups`.
        seed (int): Of ``'random'``.

    Attributes:
        structure (ViTStructure): The model's structure.
        gates (list[Tensor]): One bool tensor ``(units,)`` a layer, on the CPU.
        history (list[dict]): Event, cost as a share of the full one, and kept units of each layer.
    """

    def __init__(
        self,
        model: nn.Module,
        cost: BlockCost,
        cost_weight: float = 4.85e-4,
        normalize_cost: bool = True,
        prune_per_event: int = 32,
        rank_unit: int = 16,
        max_units: int | None = None,
        group_sizes: Mapping[str, int] | None = None,
        kinds: Sequence[str] = KINDS,
        momentum: float = 0.9,
        momentum_reset: bool = True,
        bias_correction: bool = False,
        saliency: str = 'nvit',
        norm: Mapping[str, float] | None = None,
        count_pruned: bool = True,
        seed: int = 0,
    ) -> None:
        _check_kinds('structures', kinds)
        _check_kinds('group_sizes', group_sizes or ())
        _check_kinds('norm', norm or ())
        if saliency not in SALIENCIES:
            raise ValueError(f'saliency must be one of {SALIENCIES}, got {saliency!r}')
        if not kinds:
            raise ValueError(f'structures is empty; choose from {KINDS}')
        if not 0 <= cost_weight < float('inf'):
            raise ValueError(f'cost_weight must be finite and at least 0, got {cost_weight}')
        check_integers('prune_per_event', prune_per_event, 1)
        check_integers('rank_unit', rank_unit, 1)
        if max_units is not None:
            check_integers('max_units', max_units, 0)
        for kind, size in (group_sizes or {}).items():
            check_integers(f'group_sizes.{kind}', size, 1)
        for kind, divisor in (norm or {}).items():
            if not isinstance(divisor, (int, float)) or not 0 < divisor < float('inf'):
                raise ValueError(f'norm.{kind} must be finite and above 0, got {divisor!r}')
        if max_units is not None and max_units < rank_unit:
            raise ValueError(
                f'max_units={max_units} is below rank_unit={rank_unit}: no group could go'
            )
        if not isinstance(momentum, (int, float)) or not 0 <= momentum < 1:
            raise ValueError(f'momentum must be in [0, 1), got {momentum!r}')
        if prune_per_event < rank_unit:
            raise ValueError(
                f'prune_per_event={prune_per_event} is below rank_unit={rank_unit}: the rank of '
                'the threshold would not grow'
            )
        self.structure = ViTStructure(model, embedding='emb' in kinds)
        self.group_sizes = {**NVIT_GROUP_SIZES, **(group_sizes or {})}
        self.kinds = tuple(kinds)
        check_group_sizes(
            [layer for layer in self.structure.layers if layer.kind in kinds], self.group_sizes
        )
        self.model = model
        self.cost = NormalizedCost(cost, self.structure.sizes) if normalize_cost else cost
        self.cost_weight = cost_weight
        self.prune_per_event = prune_per_event
        self.rank_unit = rank_unit
        self.max_units = max_units
        self.momentum = momentum
        self.momentum_reset = momentum_reset
        self.bias_correction = bias_correction
        self.saliency = saliency
        self.norm = norm
        self.count_pruned = count_pruned
        self.seed = seed
        self.full_cost = total_cost(self.cost, self.structure.sizes)
        self.gates = self.structure.full_gates()
        self.history: list[dict] = []
        self.num_steps = 0
        self._average: list[Tensor] | None = None
        self._updates = 0
        self._sum: Tensor | None = None
        self._masks: list[tuple[nn.Parameter, Tensor]] = []
        self._parameters = dict(model.named_parameters())
        if saliency in ('nvit', 'paper'):
            self._check_gradients(member_axes(self.structure, saliency))

    def _check_gradients(self, members: Mapping[str, tuple[int, ...]]) -> None:
        frozen = [
            name
            for name in members
            if name.startswith('backbone.') and not self._parameters[name].requires_grad
        ]
        if frozen:
            raise ValueError(
                f'{frozen[0]} is frozen, so its importance cannot be measured; set '
                'model.backbone.frozen_stages=-1 while pruning'
            )

    @property
    def num_events(self) -> int:
        """Pruning events so far."""
        return len(self.history)

    @property
    def sizes(self) -> Sizes:
        """Present sizes."""
        return Sizes.from_counts(self.structure.counts(self.gates))

    @property
    def cost_ratio(self) -> float:
        """Present cost of the blocks as a share of the full one."""
        return self._cost_ratio(self.gates)

    @property
    def least_cost_ratio(self) -> float:
        """Cost that is left when every layer that may be pruned has one group."""
        least = [
            self.group_sizes[layer.kind] if layer.kind in self.kinds else layer.units
            for layer in self.layers
        ]
        return total_cost(self.cost, Sizes.from_counts(least)) / self.full_cost

    @torch.no_grad()
    def accumulate(self) -> None:
        """Add the scores of one optimisation step; gradients must still be there."""
        self.num_steps += 1
        if self.saliency not in ('nvit', 'paper'):
            return
        scores = torch.cat(
            taylor_gate_scores(self.structure, self._parameters, self.saliency, self.norm)
        )
        self._sum = scores if self._sum is None else self._sum.add_(scores)

    def mean_scores(self) -> list[Tensor]:
        """Scores of each layer on the CPU, averaged over the steps since the last event."""
        if self.saliency == 'random':
            return random_scores(self.structure, self.group_sizes, self.seed)
        if self.saliency == 'magnitude':
            scores = magnitude_scores(self.structure, self._parameters)
            return [score.cpu() for score in scores]
        if self._sum is None:
            raise RuntimeError('No scores were accumulated since the last pruning event')
        return list((self._sum / self.num_steps).cpu().split([u.units for u in self.layers]))

    @property
    def layers(self) -> list:
        """See :class:`ViTStructure`."""
        return self.structure.layers

    def event(self, target: float = 0.0) -> dict:
        """Prune once, by the scores accumulated since the last event.

        Args:
            target (float): Share of the full cost below which nothing more is pruned. Defaults to
                0: the schedule alone decides, as in the authors' code.

        Returns:
            dict: The new entry of ``history``.
        """
        scores = self.blend(self.mean_scores())
        regularised = self.regularise(scores)
        # Where pruned groups leave the ranking, a rank that grows would count them again.
        number = self.num_events if self.count_pruned else 1
        index = rank_index(
            number, self.num_groups, self.prune_per_event, self.rank_unit, self.max_units
        )
        gates, threshold = prune_groups(
            self.layers,
            regularised,
            self.gates,
            self.group_sizes,
            index,
            self.kinds,
            self.count_pruned,
            lambda gates: self._cost_ratio(gates) <= target,
        )
        self.gates = self._agree(gates)
        self._sum, self.num_steps = None, 0
        self._masks = self.structure.weight_masks(self.model, self.gates)
        self.apply_masks()
        entry = dict(
            event=self.num_events,
            threshold=threshold,
            cost_ratio=self.cost_ratio,
            kept=self.structure.counts(self.gates),
        )
        self.history.append(entry)
        return entry

    @property
    def num_groups(self) -> int:
        """Groups of all layers that may be pruned."""
        return sum(
            layer.units // self.group_sizes[layer.kind]
            for layer in self.layers
            if layer.kind in self.kinds
        )

    def blend(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """Blend an interval's mean scores into the moving average and return what it is now."""
        self._average = update_average(self._average, scores, self.momentum)
        self._updates += 1
        average = self._average
        if self.momentum_reset and self.num_events == 0:
            self._average, self._updates = [torch.zeros_like(a) for a in average], 0
        elif self.momentum_reset and self.bias_correction:
            factor = 1 / (1 - self.momentum**self._updates)
            average = [a * factor for a in average]
        return average

    def regularise(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """Averaged scores less the weighted cost of a unit, in float64."""
        limits = {kind: size for kind, size in self.group_sizes.items() if kind != 'emb'}
        savings = unit_savings(self.cost, self.layers, self.sizes, limits)
        return regularise(scores, self.gates, savings, self.cost_weight)

    def stale_emb_cost(self, before: Sizes) -> float:
        """Present cost with the embedding of ``before``, as the authors' code counts it."""
        return total_cost(self.cost, replace(self.sizes, emb=before.emb))

    def _cost_ratio(self, gates: Sequence[Tensor]) -> float:
        sizes = Sizes.from_counts(self.structure.counts(gates))
        return total_cost(self.cost, sizes) / self.full_cost

    def _agree(self, gates: list[Tensor]) -> list[Tensor]:
        """The first process' gates, on all of them."""
        device = next(iter(self._parameters.values())).device
        flat = torch.cat(gates).to(device=device, dtype=torch.uint8)
        broadcast(flat)
        return list(flat.bool().cpu().split([layer.units for layer in self.layers]))

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Set pruned weights to zero, as after every optimisation step."""
        for parameter, mask in self._masks:
            parameter.mul_(mask)

    @torch.no_grad()
    def mask_copy(self, model: nn.Module) -> None:
        """Set pruned weights of a copy of the model, such as its moving average, to zero."""
        for parameter, mask in self.structure.weight_masks(model, self.gates):
            parameter.mul_(mask)

    def state_dict(self) -> dict:
        """What a resumed run needs besides the model's weights."""
        return dict(
            gates=[gate.clone() for gate in self.gates],
            average=self._average,
            updates=self._updates,
            sum=self._sum,
            num_steps=self.num_steps,
            history=self.history,
            seed=self.seed,
        )

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            ValueError: If the state is of a model of other sizes, or its embedding is pruned and
                this pruner leaves embeddings alone.
        """
        units = [len(gate) for gate in state['gates']]
        if units != [layer.units for layer in self.layers]:
            raise ValueError(
                'The pruning state is that of a model of other sizes; prune from a checkpoint of '
                'this config'
            )
        if 'emb' not in self.kinds and not state['gates'][0].all():
            raise ValueError(
                "The embedding of the checkpoint is pruned already: keep 'emb' in structures, or "
                'make a dense model of the checkpoint (tools/pruning/export_pruned.py) and prune '
                'that'
            )
        device = next(iter(self._parameters.values())).device
        self.gates = [gate.cpu().bool() for gate in state['gates']]
        average, total = state['average'], state['sum']
        self._average = None if average is None else [a.cpu() for a in average]
        self._sum = None if total is None else total.to(device)
        self._updates = state['updates']
        self.num_steps = state['num_steps']
        self.history = list(state['history'])
        self.seed = state.get('seed', self.seed)
        self._masks = self.structure.weight_masks(self.model, self.gates)


def _check_kinds(name: str, kinds: Iterable[str]) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f'{name} has no {unknown[0]!r}; choose from {KINDS}')
