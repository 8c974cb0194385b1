import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .renaming import NamePair, rename
from .timm import with_prefix

_MLP: list[NamePair] = [
    ('mlp.fc1.{p}', 'ffn.layers.0.0.{p}'),
    ('mlp.fc2.{p}', 'ffn.layers.1.{p}'),
]
_SWIN_BLOCK: list[NamePair] = [
    ('norm1.{p}', 'norm1.{p}'),
    ('norm2.{p}', 'norm2.{p}'),
    ('attn.qkv.{p}', 'attn.w_msa.qkv.{p}'),
    ('attn.proj.{p}', 'attn.w_msa.proj.{p}'),
    ('attn.relative_position_bias_table', 'attn.w_msa.relative_position_bias_table'),
    *_MLP,
]
SEMANTIC_BLOCK: list[NamePair] = [
    ('norm1.{p}', 'ln1.{p}'),
    ('norm2.{p}', 'ln2.{p}'),
    ('layer_scale_1', 'attn.gamma1.weight'),
    ('layer_scale_2', 'ffn.gamma2.weight'),
    ('attn.qkv.{p}', 'attn.qkv.{p}'),
    ('attn.proj.{p}', 'attn.proj.{p}'),
    ('attn.relative_position_bias_table', 'relative_position.relative_position_bias_table'),
    ('conv_pos.proj.0.{p}', 'conv_pos.{p}'),
    *_MLP,
]
# Semantic blocks are called "semantic" while names are translated, since both kinds of blocks
# have norms and MLPs.
_BACKBONE: list[NamePair] = [
    ('patch_embed.proj.{p}', 'patch_embed.projection.{p}'),  # of Swin itself
    ('patch_embed.norm.{p}', 'patch_embed.norm.{p}'),
    ('patch_embed.proj.0.c.{p}', 'patch_embed.projection.0.conv.{p}'),
    ('patch_embed.proj.0.bn.{p}', 'patch_embed.projection.0.bn.{p}'),
    ('patch_embed.proj.2.c.{p}', 'patch_embed.projection.1.conv.{p}'),
    ('patch_embed.proj.2.bn.{p}', 'patch_embed.projection.1.bn.{p}'),
    *with_prefix(_SWIN_BLOCK, 'layers.{i}.blocks.{j}.', 'stages.{i}.blocks.{j}.'),
    *with_prefix(SEMANTIC_BLOCK, 'layers.{i}.semantic.{j}.', 'stages.{i}.semantic.{j}.'),
    ('layers.{i}.downsample.reduction.{p}', 'stages.{i}.downsample.reduction.{p}'),
    ('layers.{i}.downsample.norm.{p}', 'stages.{i}.downsample.norm.{p}'),
    ('layers.{i}.semantic_token2', 'stages.{i}.global_center'),
]
_CLASSIFIER: list[NamePair] = [
    *with_prefix([*_BACKBONE, ('norm.{p}', 'norm3.{p}')], own='backbone.'),
    ('head.{p}', 'head.fc.{p}'),
]
_DETECTOR_BACKBONE = with_prefix(
    [*_BACKBONE, ('norm{i}.{p}', 'norm{i}.{p}')], 'backbone.', 'backbone.'
)
_RECOMPUTED = re.compile(r'\.(attn_mask|relative_position_index)$')


def convert_stvit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """STViT-R's classification and detection checkpoints, and those of Swin that it builds on.

    Queries, keys and values become one projection, and patch merging gets the channel order of
    MMCV's. Heads of detectors keep their names, which MMDetection still uses.
    """
    kept = {key: value for key, value in state_dict.items() if not _RECOMPUTED.search(key)}
    kept = _mark_semantic_blocks(merge_projections(kept), 'layer_scale_1')
    kept = {key: _reorder_merging(key, value) for key, value in kept.items()}
    return _unmark(_rename(kept))


def export_stvit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An STViT-R classifier's or detector's weights under the official names."""
    kept = {key: value for key, value in state_dict.items() if not _RECOMPUTED.search(key)}
    renamed = _rename(_mark_semantic_blocks(kept, 'ln1.weight'), reverse=True)
    renamed = {key: _reorder_merging(key, value, reverse=True) for key, value in renamed.items()}
    semantic = {key: value for key, value in renamed.items() if '.semantic.' in key}
    others = {key: value for key, value in renamed.items() if key not in semantic}
    return _unmark({**others, **split_projections(semantic)})


def _rename(state_dict: Mapping[str, Tensor], reverse: bool = False) -> dict[str, Tensor]:
    """Translate a classifier's names, or those of a detector's backbone."""
    try:
        return _rename_marked(state_dict, reverse)
    except ValueError as error:
        raise ValueError(str(error).replace('.semantic.', '.blocks.')) from None


def _rename_marked(state_dict: Mapping[str, Tensor], reverse: bool) -> dict[str, Tensor]:
    names_of_stages = r'backbone\.norm[012]\.' if reverse else r'backbone\.'
    if not any(re.match(names_of_stages, key) for key in state_dict):
        return rename(state_dict, _CLASSIFIER, 'STViT or Swin', reverse)
    backbone = {k: v for k, v in state_dict.items() if k.startswith('backbone.')}
    others = {k: v for k, v in state_dict.items() if not k.startswith('backbone.')}
    return {**rename(backbone, _DETECTOR_BACKBONE, 'STViT or Swin', reverse), **others}


def _mark_semantic_blocks(state_dict: Mapping[str, Tensor], sign: str) -> dict[str, Tensor]:
    blocks = tuple(k.removesuffix(sign) for k in state_dict if k.endswith('.' + sign))
    return {
        k.replace('.blocks.', '.semantic.', 1) if blocks and k.startswith(blocks) else k: v
        for k, v in state_dict.items()
    }


def _unmark(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace('.semantic.', '.blocks.', 1): v for key, v in state_dict.items()}


def merge_projections(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join ``attn.q`` and ``attn.kv`` to ``attn.qkv``."""
    merged = {}
    for key, value in state_dict.items():
        head, is_query, parameter = key.rpartition('attn.q.')
        if is_query:
            key_value = state_dict[f'{head}attn.kv.{parameter}']
            merged[f'{head}attn.qkv.{parameter}'] = torch.cat((value, key_value))
        elif 'attn.kv.' not in key:
            merged[key] = value
    return merged


def split_projections(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of :func:`merge_projections`."""
    split = {}
    for key, value in state_dict.items():
        head, is_joint, parameter = key.rpartition('attn.qkv.')
        if is_joint:
            dims = len(value) // 3
            split[f'{head}attn.q.{parameter}'] = value[:dims]
            split[f'{head}attn.kv.{parameter}'] = value[dims:]
        else:
            split[key] = value
    return split


def _reorder_merging(key: str, value: Tensor, reverse: bool = False) -> Tensor:
    """Order of the 4 C channels that merge: (column, row, C) in the official code, (C, row, column)
    in MMCV's."""
    if '.downsample.' not in key:
        return value
    sizes = (-1, 2, 2) if reverse else (2, 2, -1)
    return value.unflatten(-1, sizes).transpose(-1, -3).flatten(-3)
