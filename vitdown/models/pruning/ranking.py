"""From scores to masks: groups, one global threshold, and its schedule over pruning events."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .structures import Layer

#: Units of a group by kind, so that remaining sizes suit the hardware.
NVIT_GROUP_SIZES = dict(emb=16, head=2, qk=8, v=8, mlp=16)


def check_group_sizes(layers: Sequence[Layer], group_sizes: Mapping[str, int]) -> None:
    """Raise unless every layer is made of whole groups.

    Raises:
        ValueError: Naming the layer and what to set.
    """
    for layer in layers:
        size = group_sizes[layer.kind]
        if size < 1 or layer.units % size:
            raise ValueError(
                f'{layer.name} has {layer.units} units, which groups of {size} do not divide; '
                f'set group_sizes=dict({layer.kind}=...) to a divisor'
            )


def update_average(
    average: Sequence[Tensor] | None,
    scores: Sequence[Tensor],
    momentum: float,
) -> list[Tensor]:
    """Moving average of scores over pruning events; the first event's scores start it."""
    if average is None:
        return [score.clone() for score in scores]
    return [momentum * old + (1 - momentum) * new for old, new in zip(average, scores)]


def regularise(
    average: Sequence[Tensor], gates: Sequence[Tensor], savings: Tensor, weight: float
) -> list[Tensor]:
    """Scores less what a unit costs, in float64 (arXiv 2110.04869, Eq. 7).

    Args:
        average (Sequence[Tensor]): Averaged scores ``(units,)`` of each layer.
        gates (Sequence[Tensor]): Which units are left; pruned ones score 0 less their cost.
        savings (Tensor): ``(layers,)``, see :func:`unit_savings`.
        weight (float): Weight of the cost.
    """
    return [
        score.double() * gate.double() - weight * saving.item()
        for score, gate, saving in zip(average, gates, savings)
    ]


def group_units(scores: Tensor, gate: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cut a layer's units into groups of neighbours in rank.

    Args:
        scores (Tensor): ``(units,)``.
        gate (Tensor): ``(units,)``; of equal scores, those of pruned units come first.
        size (int): Units of a group.

    Returns:
        tuple: Units ``(groups, size)`` int64, lowest scores first, and the sums of their scores
        ``(groups,)``.
    """
    order = gate.to(torch.uint8).argsort(stable=True)
    order = order[scores[order].argsort(stable=True)]
    groups = order.view(-1, size)
    return groups, scores[groups].sum(dim=1)


def rank_index(
    event: int,
    num_groups: int,
    prune_per_event: int,
    rank_unit: int = 16,
    max_units: int | None = None,
) -> int:
    """Rank of the group whose score is the threshold, at the event ``event``, counted from 0."""
    index = min(num_groups - 1, event * prune_per_event // rank_unit - 1)
    if max_units is not None:
        index = min(index, max_units // rank_unit - 1)
    return max(0, index)


def prune_groups(
    layers: Sequence[Layer],
    scores: Sequence[Tensor],
    gates: Sequence[Tensor],
    group_sizes: Mapping[str, int],
    index: int,
    kinds: Sequence[str] | None = None,
    count_pruned: bool = True,
    enough: Callable[[Sequence[Tensor]], bool] | None = None,
) -> tuple[list[Tensor], float]:
    """One pruning event: every group at or below the threshold goes, in each layer but the last.

    Groups are formed anew from the present scores. Pruned ones keep their place in the ranking, so
    that the rank of the threshold, not the number of new groups, follows the schedule.

    Args:
        layers (Sequence[Layer]): See :func:`vit_layers`.
        scores (Sequence[Tensor]): ``(units,)`` of each layer.
        gates (Sequence[Tensor]): ``(units,)`` bool of each layer.
        group_sizes (Mapping[str, int]): Units of a group, by kind.
        index (int): Rank of the threshold among all groups, see :func:`rank_index`.
        kinds (Sequence[str], optional): Kinds of layers to prune. Defaults to all.
        count_pruned (bool): Whether groups pruned before take part in the ranking. Defaults to
            True, as in the authors' code.
        enough (Callable, optional): Tells of gates whether no more has to go: of the groups at or
            below the threshold, those of the highest scores stay that are not needed for that.

    Returns:
        tuple: New gates, and the threshold: the highest score of a group that goes.
    """
    grouped = {
        i: group_units(scores[i], gates[i], group_sizes[layer.kind])
        for i, layer in enumerate(layers)
        if kinds is None or layer.kind in kinds
    }
    ranked = torch.cat(
        [
            sums if count_pruned else sums[gates[i][groups].all(dim=1)]
            for i, (groups, sums) in grouped.items()
        ]
    )
    threshold = ranked.sort().values[min(index, len(ranked) - 1)]
    sums = torch.cat([sums for _, sums in grouped.values()])
    lengths = [len(groups) for groups, _ in grouped.values()]
    doomed = sums <= threshold
    doomed[torch.tensor(lengths).cumsum(0) - 1] = False  # the best group of a layer always stays

    def without(doomed: Tensor) -> list[Tensor]:
        new_gates = [gate.clone() for gate in gates]
        for (i, (groups, _)), part in zip(grouped.items(), doomed.split(lengths)):
            new_gates[i][groups[part].flatten()] = False
        return new_gates

    if enough is not None and enough(without(doomed)):
        order = sums.argsort(stable=True)
        order = order[doomed[order]]

        def first(count: int) -> Tensor:
            return torch.zeros_like(doomed).index_fill(0, order[:count], True)

        least = bisect_left(range(len(order)), True, key=lambda n: enough(without(first(n))))
        doomed, threshold = first(least), sums[order[max(0, least - 1)]]
    return without(doomed), float(threshold)
