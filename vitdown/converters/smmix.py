from collections.abc import Mapping

from torch import Tensor

from .renaming import NamePair, rename
from .timm import PAIRS, convert_timm, with_prefix

_BLOCK: list[NamePair] = [
    ('norm1.{p}', 'ln1.{p}'),
    ('norm2.{p}', 'ln2.{p}'),
    *((f'attn.{part}.{{p}}', f'attn.{part}.{{p}}') for part in ('q', 'kv', 'proj', 'sr', 'norm')),
    ('mlp.fc1.{p}', 'ffn.layers.0.0.{p}'),
    ('mlp.fc2.{p}', 'ffn.layers.1.{p}'),
]
_PVT: list[NamePair] = [
    ('cls_token', 'backbone.stages.3.cls_token'),
    *(
        pair
        for stage in range(4)
        for pair in (
            (f'pos_embed{stage + 1}', f'backbone.stages.{stage}.pos_embed'),
            (f'patch_embed{stage + 1}.proj.{{p}}', f'backbone.stages.{stage}.projection.{{p}}'),
            (f'patch_embed{stage + 1}.norm.{{p}}', f'backbone.stages.{stage}.norm.{{p}}'),
            *with_prefix(
                _BLOCK, f'block{stage + 1}.{{i}}.', f'backbone.stages.{stage}.layers.{{i}}.'
            ),
        )
    ),
    ('norm.{p}', 'backbone.ln1.{p}'),
    ('head.{p}', 'head.fc.{p}'),
]
_CLASS_BLOCK: list[NamePair] = [
    ('norm1.{p}', 'ln1.{p}'),
    ('norm2.{p}', 'ln2.{p}'),
    *(
        (f'attn.{part}.{{p}}', f'attn.{part}.{{p}}')
        for part in ('q', 'k', 'v', 'qkv', 'proj', 'proj_l', 'proj_w')
    ),
    ('mlp.fc1.{p}', 'ffn.layers.0.0.{p}'),
    ('mlp.fc2.{p}', 'ffn.layers.1.{p}'),
    ('gamma_1', 'attn.gamma1.weight'),
    ('gamma_2', 'ffn.gamma2.weight'),
]
_CAIT: list[NamePair] = [
    ('cls_token', 'backbone.cls_token'),
    ('pos_embed', 'backbone.pos_embed'),
    ('patch_embed.proj.{p}', 'backbone.patch_embed.projection.{p}'),
    *with_prefix(_CLASS_BLOCK, 'blocks.{i}.', 'backbone.layers.{i}.'),
    *with_prefix(_CLASS_BLOCK, 'blocks_token_only.{i}.', 'backbone.cls_layers.{i}.'),
    ('norm.{p}', 'backbone.ln1.{p}'),
    ('head.{p}', 'head.layers.head.{p}'),
]


def convert_pvt(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PVT (v1) classifiers to ``PyramidVisionTransformer`` with ``LinearClsHead``."""
    return rename(state_dict, _PVT, 'PVT')


def export_pvt(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back from :func:`convert_pvt`."""
    return rename(state_dict, _PVT, 'PVT', reverse=True)


def convert_cait(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CaiT, official or of timm, to ``CaiT`` with ``VisionTransformerClsHead``."""
    return rename(state_dict, _CAIT, 'CaiT')


def export_cait(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back from :func:`convert_cait`."""
    return rename(state_dict, _CAIT, 'CaiT', reverse=True)


def convert_smmix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DeiT and PVT trained by SMMix's official code; the head of the regions is left out."""
    kept = {k: v for k, v in state_dict.items() if not k.startswith('token_head.')}
    return convert_pvt(kept) if 'pos_embed1' in kept else convert_timm(kept)


def export_smmix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back from :func:`convert_smmix`."""
    if any(key.startswith('backbone.stages.') for key in state_dict):
        return export_pvt(state_dict)
    return rename(state_dict, PAIRS, 'SMMix', reverse=True)
