"""What can be pruned from a plain ViT, as views of its ordinary, fused weights.

A *layer* here is one set of units that are ranked among each other: the channels of the embedding,
and in each block the heads, the channels of queries and keys (the same in all heads), the channels
of values (likewise) and the channels of the MLP. An *axis* is what an axis of a weight runs over:
``'emb'`` the channels of a token; ``'qkv.3'`` the rows of the third block's queries, keys and
values; ``'v.3'`` its values alone; ``'mlp.3'`` its hidden channels. Masks, exports and scores all
follow from one table, name of a weight -> axes of its dimensions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..backbones import DistilledVisionTransformer, NViT, VisionTransformer
from .consumers import embed_axes, refuse_copied_blocks

KINDS = ('emb', 'head', 'qk', 'v', 'mlp')


@dataclass(frozen=True)
class Layer:
    """Units ranked among each other.

    Attributes:
        kind (str): One of :data:`KINDS`.
        block (int, optional): Index of the block, None for the embedding.
        units (int): Number of units before pruning.
    """

    kind: str
    block: int | None
    units: int

    @property
    def name(self) -> str:
        """``'emb'``, or e.g. ``'block 3 qk'``."""
        return self.kind if self.block is None else f'block {self.block} {self.kind}'


@dataclass(frozen=True)
class Sizes:
    """Kept units of a ViT.

    Attributes:
        emb (int): Channels of a token.
        blocks (tuple): For each block its heads, channels of a head's queries and of its values,
            and hidden channels of the MLP.
    """

    emb: int
    blocks: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def from_counts(cls, counts: Sequence[int]) -> 'Sizes':
        """From one count a layer, in the order of :func:`vit_layers`."""
        emb, *rest = (int(count) for count in counts)
        return cls(emb, tuple(zip(rest[::4], rest[1::4], rest[2::4], rest[3::4])))

    def points(self) -> Tensor:
        """``(blocks, 5)`` int64: emb, heads, qk, v, mlp of each block."""
        return torch.tensor([(self.emb, *block) for block in self.blocks])

    def arch(self, qk_scale: float) -> dict:
        """As an ``arch`` of :class:`vitdown.models.backbones.NViT`."""
        heads, qk_dims, v_dims, mlp = (list(column) for column in zip(*self.blocks))
        return dict(
            embed_dims=self.emb,
            num_layers=len(self.blocks),
            num_heads=heads,
            qk_dims=qk_dims,
            v_dims=v_dims,
            feedforward_channels=mlp,
            qk_scale=qk_scale,
        )


def vit_layers(sizes: Sizes) -> list[Layer]:
    """Layers of a ViT in their order: the embedding, then head, qk, v and mlp of each block."""
    layers = [Layer('emb', None, sizes.emb)]
    for block, units in enumerate(sizes.blocks):
        layers += [Layer(kind, block, count) for kind, count in zip(KINDS[1:], units)]
    return layers


class ViTStructure:
    """Layers, units and weights of a model with a plain ViT as ``backbone``.

    Args:
        model (nn.Module): A re-ID model or classifier with a ``VisionTransformer``,
            ``DistilledVisionTransformer`` or ``NViT`` as ``backbone`` and the consumer of its
            features as ``head``, or such a backbone alone.
        embedding (bool): Whether the embedding may be pruned, so that the head must be known.

    Attributes:
        sizes (Sizes): Sizes before pruning.
        layers (list[Layer]): See :func:`vit_layers`.
        axes (dict[str, tuple]): Name of each weight or buffer that pruning concerns -> axis name
            of each of its dimensions, None for those that stay.
        qk_scale (float): Factor on the attention logits.

    Raises:
        ValueError: If the model is no such model, its blocks' attention scales differ, its head
            has a copy of a block, or reads the embedding in an unknown way and that is to be
            pruned.
    """

    def __init__(self, model: nn.Module, embedding: bool = True) -> None:
        backbone = getattr(model, 'backbone', model)
        # Not their subclasses: the dense model is an NViT, which has no more than these.
        if type(backbone) not in (plain := (VisionTransformer, DistilledVisionTransformer, NViT)):
            raise ValueError(
                f'Pruning works on a plain ViT; {type(backbone).__name__} is not one of '
                f"vitdown's {', '.join(cls.__name__ for cls in plain)}"
            )
        refuse_copied_blocks(model)
        blocks = backbone.layers
        for block in blocks:
            if not isinstance(getattr(block.attn, 'qkv', None), nn.Linear):
                raise ValueError(
                    f'{type(block.attn).__name__} has no linear layer qkv that could be pruned; '
                    'prune the plain, full-precision model and change what is left'
                )
        scales = {block.attn.scale for block in blocks}
        if len(scales) > 1:
            raise ValueError(f'The blocks have different attention scales: {sorted(scales)}')
        self.qk_scale = scales.pop()
        self.sizes = Sizes(
            backbone.embed_dims,
            tuple(
                (
                    block.attn.num_heads,
                    block.attn.qk_dims,
                    block.attn.v_dims,
                    block.ffn.feedforward_channels,
                )
                for block in blocks
            ),
        )
        self.layers = vit_layers(self.sizes)
        prefix = '' if backbone is model else 'backbone.'
        self.axes = {prefix + name: axes for name, axes in _backbone_axes(backbone).items()}
        self._prefix = prefix
        if backbone is not model and embedding:
            self._add_consumers(model)

    def _add_consumers(self, model: nn.Module) -> None:
        tensors = dict(model.state_dict(keep_vars=True))
        for name, child in model.named_children():
            if name == 'backbone' or not any(True for _ in child.parameters()):
                continue
            for key, dim in embed_axes(child).items():
                tensor = tensors[f'{name}.{key}']
                self.axes[f'{name}.{key}'] = tuple(
                    'emb' if i == dim else None for i in range(tensor.ndim)
                )

    def full_gates(self) -> list[Tensor]:
        """One bool tensor ``(units,)`` a layer, all kept."""
        return [torch.ones(layer.units, dtype=torch.bool) for layer in self.layers]

    def counts(self, gates: Sequence[Tensor]) -> list[int]:
        """Kept units of each layer."""
        return torch.stack([gate.sum() for gate in gates]).tolist()

    def block_gates(self, gates: Sequence[Tensor], block: int) -> dict[str, Tensor]:
        """Gates of one block by kind."""
        return dict(zip(KINDS[1:], gates[1 + 4 * block : 5 + 4 * block]))

    def axis_masks(self, gates: Sequence[Tensor]) -> dict[str, Tensor]:
        """Bool tensor of each axis: which of its places are kept."""
        masks = {'emb': gates[0]}
        for block in range(len(self.sizes.blocks)):
            gate = self.block_gates(gates, block)
            qk = torch.outer(gate['head'], gate['qk']).flatten()
            value = torch.outer(gate['head'], gate['v']).flatten()
            masks[f'qkv.{block}'] = torch.cat((qk, qk, value))
            masks[f'v.{block}'] = value
            masks[f'mlp.{block}'] = gate['mlp']
        return masks

    def split_qkv(self, rows: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """Split the values of ``qkv`` rows by queries, keys, values: each ``(heads, channels)``."""
        heads, qk_dims, v_dims, _ = self.sizes.blocks[block]
        sizes = [heads * dims for dims in (qk_dims, qk_dims, v_dims)]
        return tuple(part.view(heads, -1) for part in rows.split(sizes))

    def weight_masks(
        self, model: nn.Module, gates: Sequence[Tensor]
    ) -> list[tuple[nn.Parameter, Tensor]]:
        """Parameters of a model with pruned parts, each with a mask that broadcasts to it.

        Buffers need none: nothing passes through their pruned parts.
        """
        masks = self.axis_masks(gates)
        parameters = dict(model.named_parameters())
        found = []
        for name, axes in self.axes.items():
            parameter = parameters.get(name)
            for dim, axis in enumerate(axes):
                if parameter is None or axis is None or masks[axis].all():
                    continue
                shape = [-1 if i == dim else 1 for i in range(parameter.ndim)]
                found.append((parameter, masks[axis].view(shape).to(parameter.device)))
        return found

    def select(self, state_dict: Mapping[str, Tensor], gates: Sequence[Tensor]) -> dict:
        """Weights of the dense model: of each weight what is kept, in its order.

        Args:
            state_dict (Mapping[str, Tensor]): Of the model, of the sizes before pruning.
            gates (Sequence[Tensor]): One bool tensor a layer.
        """
        kept = {axis: mask.nonzero()[:, 0] for axis, mask in self.axis_masks(gates).items()}
        dense = {}
        for name, tensor in state_dict.items():
            for dim, axis in enumerate(self.axes.get(name, ())):
                if axis is not None:
                    tensor = tensor.index_select(dim, kept[axis].to(tensor.device))
            dense[name] = tensor.clone()
        return dense

    def gates_from_zeros(self, state_dict: Mapping[str, Tensor]) -> list[Tensor]:
        """Gates of a masked model whose masks were not kept: a unit is pruned if its rows are zero.

        A whole embedding channel counts as pruned if its row of the patch embedding is zero, a
        head if its rows of queries, keys and values are, and so on.

        Raises:
            KeyError: If the weights are not the model's.
            ValueError: If a layer would have nothing left.
        """
        prefix = self._prefix
        patches = state_dict[f'{prefix}patch_embed.projection.weight']
        gates = [patches.flatten(1).ne(0).any(dim=1)]
        for block in range(len(self.sizes.blocks)):
            name = f'{prefix}layers.{block}.'
            rows = state_dict[f'{name}attn.qkv.weight'].ne(0).any(dim=1)
            query, _, value = self.split_qkv(rows, block)
            head = query.any(dim=1) | value.any(dim=1)
            mlp = state_dict[f'{name}ffn.layers.0.0.weight'].ne(0).any(dim=1)
            gates += [head, query.any(dim=0), value.any(dim=0), mlp]
        for layer, gate in zip(self.layers, gates):
            if not gate.any():
                raise ValueError(f'The weights of {layer.name} are all zero: nothing would be left')
        return gates


def _backbone_axes(backbone: VisionTransformer) -> dict[str, tuple[str | None, ...]]:
    """Axes of the backbone's own weights."""
    axes: dict[str, tuple[str | None, ...]] = {}
    for name, parameter in backbone.named_parameters():
        part = name.split('.')
        if part[0] == 'layers':
            axes[name] = _block_axes(part[1], '.'.join(part[2:]), parameter.ndim)
        elif part[0] == 'patch_embed':
            axes[name] = ('emb', *[None] * (parameter.ndim - 1))
        else:  # tokens, position and side information embedding, norms: channels last
            axes[name] = (*[None] * (parameter.ndim - 1), 'emb')
    return axes


def _block_axes(block: str, name: str, ndim: int) -> tuple[str | None, ...]:
    known = {
        'attn.qkv.weight': (f'qkv.{block}', 'emb'),
        'attn.qkv.bias': (f'qkv.{block}',),
        'attn.qkv.token_scale': (None, None),
        'attn.proj.weight': ('emb', f'v.{block}'),
        'attn.proj.bias': ('emb',),
        'ffn.layers.0.0.weight': (f'mlp.{block}', 'emb'),
        'ffn.layers.0.0.bias': (f'mlp.{block}',),
        'ffn.layers.1.weight': ('emb', f'mlp.{block}'),
        'ffn.layers.1.bias': ('emb',),
    }
    if name in known:
        return known[name]
    if ndim == 1 and name.split('.')[-2] in ('ln1', 'ln2', 'gamma1', 'gamma2'):
        return ('emb',)
    raise ValueError(
        f'Pruning does not know the weight layers.{block}.{name}; remove what adds it to the block'
    )
