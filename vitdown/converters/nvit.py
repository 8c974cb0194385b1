"""Checkpoints of NViT's authors: dense ones, and those written while pruning."""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .renaming import NamePair, rename
from .timm import BACKBONE_PAIRS, with_prefix

_DIMS = dict(head='num_heads', QK='qk_dims', V='v_dims', MLP='feedforward_channels')
# The channels of a query that the attention is scaled for, whatever is left of them
_QK_SCALE = 64**-0.5

PAIRS: list[NamePair] = [
    ('dist_token', 'backbone.dist_token'),
    ('blocks.{i}.attn.qkv.token_scale', 'backbone.layers.{i}.attn.qkv.token_scale'),
    *with_prefix(BACKBONE_PAIRS, own='backbone.'),
    ('head.{p}', 'head.layers.head.{p}'),
    ('head_dist.{p}', 'head.layers.head_dist.{p}'),
]


def nvit_arch(checkpoint: Mapping) -> dict:
    """Sizes that a dense checkpoint carries, as an ``arch`` of ``NViT``.

    Args:
        checkpoint (Mapping): The file's content, with the entry ``dim``.

    Raises:
        ValueError: If there are no sizes, or not one of each block.
    """
    dims = checkpoint.get('dim')
    if not isinstance(dims, Mapping):
        raise ValueError(
            "The checkpoint has no entry 'dim' with the sizes of its blocks: not a dense NViT"
        )
    missing = {'EMB', *_DIMS} - set(dims)
    if missing:
        raise ValueError(f"The checkpoint's sizes lack {sorted(missing)}")
    columns = {own: [int(size) for size in dims[name]] for name, own in _DIMS.items()}
    num_layers = len(columns['num_heads'])
    if any(len(column) != num_layers for column in columns.values()):
        raise ValueError("The checkpoint's sizes are not one of each block")
    return dict(embed_dims=int(dims['EMB']), num_layers=num_layers, **columns, qk_scale=_QK_SCALE)


def nvit_model_cfg(arch: Mapping, state_dict: Mapping[str, Tensor]) -> dict:
    """What a converted dense checkpoint's model has of its own, beside what all of them share.

    Args:
        arch (Mapping): See :func:`nvit_arch`.
        state_dict (Mapping[str, Tensor]): Converted weights.
    """
    patch_size = state_dict['backbone.patch_embed.projection.weight'].shape[-1]
    tokens = state_dict['backbone.pos_embed'].shape[1]
    return dict(
        backbone=dict(
            arch=dict(arch),
            img_size=patch_size * math.isqrt(tokens - 2),  # without class and distillation token
            patch_size=patch_size,
            token_scale=any(key.endswith('.token_scale') for key in state_dict),
        ),
        head=dict(
            num_classes=len(state_dict['head.layers.head.weight']), in_channels=arch['embed_dims']
        ),
    )


def convert_nvit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """NViT's weights to an mmpretrain-style classifier with an ``NViT`` backbone.

    Queries, keys and values are joined, the patch embedding becomes a convolution. Factors of
    tokens are left out where all are 1. Of checkpoints written while pruning, the factors of heads
    are multiplied into the weights, which keep their full size with zeros where they were pruned.
    """
    fused = _fuse_heads(state_dict) if _is_aligned(state_dict) else dict(state_dict)
    for key in [key for key in fused if key.endswith('.attn.qkv.Q.weight')]:
        prefix = key.removesuffix('Q.weight')
        for name in ('weight', 'bias'):
            parts = [fused.pop(f'{prefix}{part}.{name}') for part in 'QKV']
            fused[prefix + name] = torch.cat(parts)
    masks = [key for key in fused if key.endswith('.token_mask')]
    plain = all(bool((fused[key] == 1).all()) for key in masks)
    for key in masks:
        mask = fused.pop(key)
        if not plain:
            fused[key.replace('token_mask', 'token_scale')] = mask
    fused = {key.replace('.proj.proj.', '.proj.'): value for key, value in fused.items()}
    patches = fused['patch_embed.proj.weight']
    if patches.shape[-1] == 1:
        side = round((patches.shape[1] / 3) ** 0.5)
        patches = patches.view(len(patches), side, side, 3).permute(0, 3, 1, 2).contiguous()
        fused['patch_embed.proj.weight'] = patches
    return rename(fused, PAIRS, 'NViT')


def export_nvit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An ``NViT`` classifier's weights under the names of NViT's dense checkpoints."""
    renamed = rename(state_dict, PAIRS, 'NViT', reverse=True)
    num_tokens = renamed['pos_embed'].shape[1]
    for key in [key for key in renamed if key.endswith('.attn.qkv.weight')]:
        prefix = key.removesuffix('weight')
        values = renamed[key.replace('.qkv.', '.proj.')].shape[1]
        queries = (len(renamed[key]) - values) // 2
        for name in ('weight', 'bias'):
            parts = renamed.pop(prefix + name).split([queries, queries, values])
            renamed |= {f'{prefix}{part}.{name}': value for part, value in zip('QKV', parts)}
        mask = renamed.pop(f'{prefix}token_scale', None)
        ones = torch.ones(num_tokens, 1, dtype=parts[0].dtype)
        renamed[f'{prefix}token_mask'] = ones if mask is None else mask
    renamed = {
        re.sub(r'\.attn\.proj\.(\w+)$', r'.attn.proj.proj.\1', key): value
        for key, value in renamed.items()
    }
    patches = renamed['patch_embed.proj.weight']
    flat = patches.permute(0, 2, 3, 1).flatten(1)[..., None, None]
    return {**renamed, 'patch_embed.proj.weight': flat.contiguous()}


def _is_aligned(state_dict: Mapping[str, Tensor]) -> bool:
    return any(key.endswith('.head_mask.weight') for key in state_dict)


def _fuse_heads(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with an axis of heads to rows and columns in which the head varies slowest."""
    fused = {}
    for key, value in state_dict.items():
        if key.endswith('.head_mask.weight'):
            continue
        if match := re.fullmatch(r'(.*\.attn\.qkv\.)[QKV]\.(weight|bias)', key):
            value = value * state_dict[f'{match[1]}head_mask.weight'][:, 0]
            # (d, C, H) or (d, H) to rows (H * d)
            value = value.movedim(-1, 0).flatten(0, 1)
        elif key.endswith('.attn.proj.weight'):  # (C, d, H)
            value = value.transpose(1, 2).flatten(1)
        fused[key] = value
    return fused
