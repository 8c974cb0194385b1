"""Importance of units: squared sums of weight times gradient (arXiv 2110.04869, Eq. 3-7)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .structures import ViTStructure

#: Divisors of the sums by kind, as in the authors' code.
NVIT_NORM = dict(emb=12.0, head=12.0, qk=2.0, v=2.0, mlp=1.0)

_NVIT_AXES = {
    'patch_embed.projection.weight': (0,),
    'patch_embed.projection.bias': (0,),
    'attn.qkv.weight': (0, 1),
    'attn.qkv.bias': (0,),
    'attn.proj.weight': (0,),
    'attn.proj.bias': (0,),
    'ffn.layers.0.0.weight': (0, 1),
    'ffn.layers.0.0.bias': (0,),
    'ffn.layers.1.weight': (0,),
    'ffn.layers.1.bias': (0,),
}


def member_axes(structure: ViTStructure, mode: str = 'nvit') -> dict[str, tuple[int, ...]]:
    """Which weights count, and along which of their dimensions.

    Args:
        structure (ViTStructure): The model's structure.
        mode (str): ``'nvit'``: those of the authors' code (of a head its queries, keys and values,
            of a query channel the queries alone, of a value channel the values, of the MLP its
            first layer, of the embedding neither norms nor tokens nor consumers). ``'paper'``:
            every weight that is removed with the unit.

    Returns:
        dict[str, tuple[int, ...]]: Name -> dimensions.

    Raises:
        ValueError: For another mode.
    """
    if mode not in ('nvit', 'paper'):
        raise ValueError(f"saliency must be 'nvit' or 'paper', got {mode!r}")
    members = {}
    for name, axes in structure.axes.items():
        dims = tuple(dim for dim, axis in enumerate(axes) if axis is not None)
        if mode == 'nvit':
            part = name.removeprefix('backbone.')
            if part.startswith('layers.'):
                part = part.split('.', 2)[2]
            elif not part.startswith('patch_embed.'):
                continue
            dims = _NVIT_AXES.get(part, ())
        if dims:
            members[name] = dims
    return members


@torch.no_grad()
def axis_sums(
    structure: ViTStructure,
    parameters: Mapping[str, nn.Parameter],
    members: Mapping[str, tuple[int, ...]],
    product: Callable[[nn.Parameter], Tensor | None],
) -> dict[str, Tensor]:
    """Sums over all weights that share a place of an axis.

    One product a weight serves all of its axes.

    Args:
        structure (ViTStructure): The model's structure.
        parameters (Mapping[str, Parameter]): The model's.
        members (Mapping[str, tuple[int, ...]]): See :func:`member_axes`.
        product (Callable): From a weight to what is summed up, or None for zeros.

    Returns:
        dict[str, Tensor]: Axis -> float32 sums, ``'v.<block>'`` without those of ``'qkv.<block>'``.
    """
    sums: dict[str, Tensor] = {}
    for name, dims in members.items():
        values = product(parameters[name]) if name in parameters else None
        if values is None:
            continue
        for dim in dims:
            axis = structure.axes[name][dim]
            assert axis is not None  # only axes have members
            others = [d for d in range(values.ndim) if d != dim]
            total = values.sum(dim=others) if others else values
            sums[axis] = sums[axis] + total if axis in sums else total
    return sums


def weight_times_gradient(parameter: nn.Parameter) -> Tensor | None:
    """What first-order saliency sums up; None without a gradient."""
    if parameter.grad is None:
        return None
    return parameter.float() * parameter.grad.float()


@torch.no_grad()
def unit_sums(
    structure: ViTStructure,
    parameters: Mapping[str, nn.Parameter],
    mode: str = 'nvit',
    product: Callable[[nn.Parameter], Tensor | None] = weight_times_gradient,
) -> list[Tensor]:
    """Sums over the weights of each unit.

    Of weight times gradient, that is the gradient of a gate of value 1 on the unit.

    Args:
        structure (ViTStructure): The model's structure.
        parameters (Mapping[str, Parameter]): The model's, with gradients.
        mode (str): See :func:`member_axes`.
        product (Callable): See :func:`axis_sums`.

    Returns:
        list[Tensor]: One float32 tensor ``(units,)`` a layer; non-finite sums are 0.
    """
    sums = axis_sums(structure, parameters, member_axes(structure, mode), product)
    device = next(iter(sums.values())).device if sums else None

    def of_axis(axis: str, size: int) -> Tensor:
        return sums[axis] if axis in sums else torch.zeros(size, device=device)

    units = [of_axis('emb', structure.sizes.emb)]
    for block, (heads, qk_dims, v_dims, mlp) in enumerate(structure.sizes.blocks):
        rows = of_axis(f'qkv.{block}', heads * (2 * qk_dims + v_dims))
        query, key, value = structure.split_qkv(rows, block)
        if f'v.{block}' in sums:
            value = value + sums[f'v.{block}'].view_as(value)
        head = query.sum(dim=1) + key.sum(dim=1) + value.sum(dim=1)
        channel = query.sum(dim=0)
        if mode == 'paper':
            channel = channel + key.sum(dim=0)
        units += [head, channel, value.sum(dim=0), of_axis(f'mlp.{block}', mlp)]
    return [torch.nan_to_num(unit, nan=0.0, posinf=0.0, neginf=0.0) for unit in units]


@torch.no_grad()
def taylor_gate_scores(
    structure: ViTStructure,
    parameters: Mapping[str, nn.Parameter],
    mode: str = 'nvit',
    norm: Mapping[str, float] | None = None,
) -> list[Tensor]:
    """Importance of every unit after one step, ``(sum(weight * gradient) / n) ** 2``.

    Args:
        structure (ViTStructure): The model's structure.
        parameters (Mapping[str, Parameter]): The model's, with gradients.
        mode (str): See :func:`member_axes`.
        norm (Mapping[str, float], optional): Divisor n of each kind. Defaults to
            :data:`NVIT_NORM` for ``'nvit'`` and 1 for ``'paper'``.

    Returns:
        list[Tensor]: One float32 tensor ``(units,)`` a layer.
    """
    if norm is None:
        norm = NVIT_NORM if mode == 'nvit' else {}
    return [
        (total / norm.get(layer.kind, 1.0)).square()
        for layer, total in zip(structure.layers, unit_sums(structure, parameters, mode))
    ]


def magnitude_scores(
    structure: ViTStructure, parameters: Mapping[str, nn.Parameter]
) -> list[Tensor]:
    """Baseline: sum of the squares of all weights that are removed with a unit."""
    return unit_sums(structure, parameters, 'paper', lambda p: p.float().square())


def random_scores(
    structure: ViTStructure, group_sizes: Mapping[str, int], seed: int = 0
) -> list[Tensor]:
    """Baseline: groups of random units, each with a score drawn uniformly from [0, 1).

    Units of a group have equal parts of its score, so that any group is as likely to go as any
    other, however large. The same at every call.

    Args:
        structure (ViTStructure): The model's structure.
        group_sizes (Mapping[str, int]): Units of a group, by kind.
        seed (int): Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for layer in structure.layers:
        size = group_sizes[layer.kind]
        groups = torch.rand(-(-layer.units // size), generator=generator) / size
        order = torch.randperm(layer.units, generator=generator)
        scores.append(groups.repeat_interleave(size)[order])
    return scores
