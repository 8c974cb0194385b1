from collections.abc import Mapping

from torch import Tensor

from .renaming import NamePair, rename

# Parts of one encoder layer
LAYER_PAIRS: list[NamePair] = [
    ('norm1.{p}', 'ln1.{p}'),
    ('norm2.{p}', 'ln2.{p}'),
    ('attn.qkv.{p}', 'attn.qkv.{p}'),
    ('attn.proj.{p}', 'attn.proj.{p}'),
    ('mlp.fc1.{p}', 'ffn.layers.0.0.{p}'),
    ('mlp.fc2.{p}', 'ffn.layers.1.{p}'),
    ('ls1.gamma', 'attn.gamma1.weight'),
    ('ls2.gamma', 'ffn.gamma2.weight'),
]
BACKBONE_PAIRS: list[NamePair] = [
    ('cls_token', 'cls_token'),
    ('pos_embed', 'pos_embed'),
    ('patch_embed.proj.{p}', 'patch_embed.projection.{p}'),
    ('norm_pre.{p}', 'pre_norm.{p}'),
    ('norm.{p}', 'ln1.{p}'),
    ('fc_norm.{p}', 'ln2.{p}'),
    *((f'blocks.{{i}}.{foreign}', f'layers.{{i}}.{own}') for foreign, own in LAYER_PAIRS),
]
CLASSIFIER_PAIRS: list[NamePair] = [
    ('head.{p}', 'head.layers.head.{p}'),
    ('pre_logits.fc.{p}', 'head.layers.pre_logits.{p}'),
]


def with_prefix(pairs: list[NamePair], foreign: str = '', own: str = '') -> list[NamePair]:
    """The pairs with a prefix before the names of each side."""
    return [(foreign + a, own + b) for a, b in pairs]


PAIRS = with_prefix(BACKBONE_PAIRS, own='backbone.') + CLASSIFIER_PAIRS
DISTILLED_PAIRS: list[NamePair] = [
    *PAIRS,
    ('dist_token', 'backbone.dist_token'),
    ('head_dist.{p}', 'head.layers.head_dist.{p}'),
]
T2T_PAIRS: list[NamePair] = [
    ('tokens_to_token.project.{p}', 'backbone.patch_embed.project.{p}'),
    *with_prefix(
        LAYER_PAIRS, 'tokens_to_token.attention{i}.', 'backbone.patch_embed.attention{i}.'
    ),
    *PAIRS,
]
LV_VIT_PAIRS: list[NamePair] = [
    ('patch_embed.conv{i}.{p}', 'backbone.patch_embed.conv{i}.{p}'),
    ('patch_embed.bn{i}.{p}', 'backbone.patch_embed.bn{i}.{p}'),
    ('head.{p}', 'head.head.{p}'),
    ('aux_head.{p}', 'head.aux_head.{p}'),
    *PAIRS,
]
HYBRID_PAIRS: list[NamePair] = [
    *with_prefix(
        [
            (name, name)
            for name in (
                'stem.conv.{p}',
                'stem.norm.{p}',
                'stages.{i}.blocks.{j}.downsample.conv.{p}',
                'stages.{i}.blocks.{j}.downsample.norm.{p}',
                'stages.{i}.blocks.{j}.{p}.weight',
                'stages.{i}.blocks.{j}.{p}.bias',
            )
        ],
        'patch_embed.backbone.',
        'backbone.patch_embed.projection.resnet.',
    ),
    ('patch_embed.proj.{p}', 'backbone.patch_embed.projection.proj.{p}'),
    *PAIRS,
]


def convert_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's ``VisionTransformer`` to an mmpretrain-style classifier (``backbone.``, ``head.``)."""
    return rename(state_dict, PAIRS, 'timm')


def convert_deit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DeiT checkpoints; of distilled ones the distillation token and its head are left out.

    TransReID starts from the distilled checkpoints in the same way: the class token's weights
    only.
    """
    state_dict = dict(state_dict)
    if 'dist_token' in state_dict:
        pos_embed = state_dict['pos_embed']
        state_dict['pos_embed'] = pos_embed[:, [0, *range(2, pos_embed.shape[1])]]
    kept = {k: v for k, v in state_dict.items() if k != 'dist_token' and 'head_dist' not in k}
    return rename(kept, PAIRS, 'DeiT')


def convert_deit_distilled(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Distilled DeiT checkpoints, whole, for ``DistilledVisionTransformer`` and ``DeiTClsHead``."""
    return rename(state_dict, DISTILLED_PAIRS, 'distilled DeiT')


def convert_t2t(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """T2T-ViT with a transformer in its tokens-to-token module, for ``T2TViT``."""
    return rename(state_dict, T2T_PAIRS, 'T2T-ViT')


def convert_lv_vit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LV-ViT (TokenLabeling), for ``LVViT`` and ``TokenLabelHead``."""
    return rename(state_dict, LV_VIT_PAIRS, 'LV-ViT')


def convert_timm_hybrid(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's ViT behind a ResNet (``vit_base_r50_s16_*``), for ``HybridVisionTransformer``."""
    return rename(state_dict, HYBRID_PAIRS, 'timm hybrid')


def export_timm_hybrid(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_timm_hybrid`; without a head."""
    kept = {k: v for k, v in state_dict.items() if not k.startswith('head.')}
    return rename(kept, HYBRID_PAIRS, 'timm hybrid', reverse=True)


def export_deit_distilled(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_deit_distilled`."""
    return rename(state_dict, DISTILLED_PAIRS, 'distilled DeiT', reverse=True)


def export_t2t(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_t2t`."""
    return rename(state_dict, T2T_PAIRS, 'T2T-ViT', reverse=True)


def export_lv_vit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_lv_vit`."""
    return rename(state_dict, LV_VIT_PAIRS, 'LV-ViT', reverse=True)


def export_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Backbone (and linear classifier) of a vitdown model under timm's names.

    Weights that a timm ViT has no place for (re-ID heads, side information) are an error, except
    for a head other than mmpretrain's linear classifier, which is left out.
    """
    kept = {
        key: value
        for key, value in state_dict.items()
        if not key.startswith('head.') or key.startswith('head.layers.')
    }
    return rename(kept, PAIRS, 'timm', reverse=True)
