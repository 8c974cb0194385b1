import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .renaming import NamePair, rename
from .timm import with_prefix

# Quantizer state beside the weights of a layer
_QUANTIZERS: list[NamePair] = [
    ('input_quant_fn.s', 'input_quant.step'),
    ('input_quant_fn.signed', 'input_quant.signed'),
    ('lsqw_fn.s', 'weight_quant.step'),
    ('move_b4.bias', 'input_quant.shift_before'),
    ('move_aft.bias', 'input_quant.shift_after'),
]
_INSIDE_ATTENTION: list[NamePair] = [
    ('quan_a_softmax_fn.s', 'prob_quant.step'),
    ('quan_a_q_fn.s', 'qkv.query_quant.step'),
    ('quan_a_k_fn.s', 'qkv.key_quant.step'),
    ('quan_a_v_fn.s', 'qkv.value_quant.step'),
    ('quan_a_qkx_fn.s', 'qkv.key_quant.step'),
    ('move_qkx_b4.bias', 'qkv.key_quant.shift_before'),
    ('move_qkx_aft.bias', 'qkv.key_quant.shift_after'),
    *(
        (f'move_{part[0]}_{end}.bias', f'qkv.{part}_quant.shift_{when}')
        for part in ('query', 'key', 'value')
        for end, when in (('b4', 'before'), ('aft', 'after'))
    ),
]


def _layer(foreign: str, own: str) -> list[NamePair]:
    """Weights and quantizers of one quantized layer."""
    quantizers = with_prefix(_QUANTIZERS, f'{foreign}.', f'{own}.')
    return [*quantizers, (f'{foreign}.{{p}}', f'{own}.{{p}}')]


def _attention(foreign: str, own: str, qkr: bool) -> list[NamePair]:
    # Names of the two variants meet in ours, so that each direction needs to know the variant.
    other = ('quan_a_q_fn', 'quan_a_k_fn', 'move_q_', 'move_k_') if qkr else ('qkx',)
    pairs = [
        *((a, b) for a, b in _INSIDE_ATTENTION if not any(part in a for part in other)),
        *with_prefix(_QUANTIZERS, 'quant_x_4_qkv.' if qkr else 'qkv.', 'qkv.'),
        ('qkv.{p}', 'qkv.{p}'),
        *_layer('proj', 'proj'),
    ]
    return with_prefix(pairs, foreign, own)


def _deit_pairs(qkr: bool) -> list[NamePair]:
    return [
        *((name, f'backbone.{name}') for name in ('cls_token', 'dist_token', 'pos_embed')),
        *_layer('patch_embed.proj', 'backbone.patch_embed.projection'),
        *_attention('blocks.{i}.attn.', 'backbone.layers.{i}.attn.', qkr),
        *_layer('blocks.{i}.mlp.fc1', 'backbone.layers.{i}.ffn.layers.0.0'),
        *_layer('blocks.{i}.mlp.fc2', 'backbone.layers.{i}.ffn.layers.1'),
        ('blocks.{i}.norm1.{p}', 'backbone.layers.{i}.ln1.{p}'),
        ('blocks.{i}.norm2.{p}', 'backbone.layers.{i}.ln2.{p}'),
        ('norm.{p}', 'backbone.ln1.{p}'),
        *_layer('head', 'head.layers.head'),
        *_layer('head_dist', 'head.layers.head_dist'),
    ]


def _swin_pairs(qkr: bool, num_stages: int) -> list[NamePair]:
    pairs = [
        *_layer('features.0.0', 'backbone.patch_embed.projection'),
        ('features.0.2.{p}', 'backbone.patch_embed.norm.{p}'),
        ('norm.{p}', f'backbone.norm{num_stages - 1}.{{p}}'),
        *_layer('head', 'head.fc'),
    ]
    for i in range(num_stages):
        block, own = f'features.{2 * i + 1}.{{j}}', f'backbone.stages.{i}.blocks.{{j}}'
        merging, downsample = f'features.{2 * i + 2}', f'backbone.stages.{i}.downsample'
        pairs += [
            (
                f'{block}.attn.relative_position_{{p}}',
                f'{own}.attn.w_msa.relative_position_{{p}}',
            ),
            *_attention(f'{block}.attn.', f'{own}.attn.w_msa.', qkr),
            *_layer(f'{block}.mlp.fc1', f'{own}.ffn.layers.0.0'),
            *_layer(f'{block}.mlp.fc2', f'{own}.ffn.layers.1'),
            (f'{block}.norm1.{{p}}', f'{own}.norm1.{{p}}'),
            (f'{block}.norm2.{{p}}', f'{own}.norm2.{{p}}'),
            *_layer(f'{merging}.reduction', f'{downsample}.reduction'),
            (f'{merging}.norm.{{p}}', f'{downsample}.norm.{{p}}'),
        ]
    return pairs


def convert_ofq(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OFQ's DeiT and Swin checkpoints to classifiers with ``quant_cfg=dict(type='OFQ', ...)``.

    DeiT becomes ``DistilledVisionTransformer`` with ``DeiTClsHead``, Swin ``SwinTransformer`` with
    ``LinearClsHead``.
    """
    state_dict = _check_clips(state_dict)
    qkr = any('quan_a_qkx_fn' in key for key in state_dict)
    joined = _join_qkv(state_dict)
    if 'features.0.0.weight' in state_dict:
        stages = {int(key.split('.')[1]) // 2 for key in joined if '.attn.' in key}
        converted = rename(joined, _swin_pairs(qkr, len(stages)), 'OFQ')
        converted = {key: _to_unfold_order(key, value) for key, value in converted.items()}
    else:
        converted = rename(joined, _deit_pairs(qkr), 'OFQ')
    for key in [key for key in converted if key.endswith('.step')]:
        converted[key.removesuffix('step') + 'initialized'] = torch.tensor(True)
    for key in [key for key in converted if key.endswith('.signed')]:
        converted[key] = converted[key].reshape(()).bool()
    return converted


def export_ofq(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a quantized DeiT or Swin classifier under OFQ's names."""
    qkr = not any('.query_quant.' in key for key in state_dict)
    state_dict = {k: v for k, v in state_dict.items() if not k.endswith('.initialized')}
    for key in [key for key in state_dict if key.endswith('.signed')]:
        state_dict[key] = state_dict[key].reshape(1).float()
    stages = {key.split('.')[2] for key in state_dict if key.startswith('backbone.stages.')}
    if stages:
        state_dict = {k: _to_unfold_order(k, v, inverse=True) for k, v in state_dict.items()}
        pairs = _swin_pairs(qkr, len(stages))
    else:
        pairs = _deit_pairs(qkr)
    return _split_qkv(rename(state_dict, pairs, 'OFQ', reverse=True), qkr)


def _check_clips(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the clip values of StatsQ, which are the constant 2."""
    kept = {}
    for key, value in state_dict.items():
        if not key.endswith('.clip_val'):
            kept[key] = value
        elif not bool((value == 2).all()):
            raise ValueError(f'{key} is {value.tolist()}; StatsQ here clips at 2, as OFQ does')
    return kept


def _join_qkv(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One weight for queries, keys and values; one shift for each."""
    joined = {}
    for key, value in state_dict.items():
        prefix, _, name = key.partition('.attn.')
        prefix += '.attn.'
        if name in ('q.weight', 'k.weight', 'v.weight'):
            parts = [state_dict[f'{prefix}{part}.weight'] for part in 'qkv']
            joined[f'{prefix}qkv.weight'] = torch.cat(parts)
        elif name == 'v.bias':
            unused = value.new_zeros(2 * len(value))
            joined[f'{prefix}qkv.bias'] = torch.cat((unused, value))
        elif name == 'move_qkv_b4.bias':
            for part, shift in zip('qkv', value.chunk(3)):
                joined[f'{prefix}move_{part}_b4.bias'] = shift
        elif name == 'relative_position_index':
            side = round(value.numel() ** 0.5)
            joined[key] = value.reshape(side, side)
        else:
            joined[key] = value
    return joined


def _split_qkv(state_dict: Mapping[str, Tensor], qkr: bool) -> dict[str, Tensor]:
    """Inverse of :func:`_join_qkv`, with the clip values."""
    split = {}
    clip = torch.full((1,), 2.0)
    for key, value in state_dict.items():
        prefix, _, name = key.partition('.attn.')
        prefix += '.attn.'
        if qkr and name == 'qkv.weight':
            for part, weight in zip('qkv', value.chunk(3)):
                split[f'{prefix}{part}.weight'] = weight
            split[f'{prefix}qk_quant.clip_val'] = split[f'{prefix}v_quant.clip_val'] = clip
        elif qkr and name == 'qkv.bias':
            split[f'{prefix}v.bias'] = value.chunk(3)[2]
        elif not qkr and name == 'move_q_b4.bias':
            parts = [state_dict[f'{prefix}move_{part}_b4.bias'] for part in 'qkv']
            split[f'{prefix}move_qkv_b4.bias'] = torch.cat(parts)
        elif not qkr and re.fullmatch(r'move_[kv]_b4\.bias', name):
            continue
        elif name == 'relative_position_index':
            split[key] = value.flatten()
        else:
            split[key] = value
        if re.search(r'(\.attn\.(proj|qkv)|\.mlp\.fc\d|\.reduction)\.weight$', key) and not (
            qkr and name == 'qkv.weight'
        ):
            split[key.removesuffix('weight') + 'statsq_fn.clip_val'] = clip
    return split


def _to_unfold_order(key: str, value: Tensor, inverse: bool = False) -> Tensor:
    """Channels of a patch merging in the order in which ``nn.Unfold`` lists them.

    The official order is (column, row, channel) of the 2 x 2 neighbours, Unfold's
    (channel, row, column).
    """
    merged = r'\.downsample\.(norm\.\w+|reduction\.(weight|input_quant\.shift_\w+))$'
    if not re.search(merged, key):
        return value
    if inverse:
        return value.unflatten(-1, (-1, 2, 2)).movedim((-1, -2, -3), (-3, -2, -1)).flatten(-3)
    return value.unflatten(-1, (2, 2, -1)).movedim((-3, -2, -1), (-1, -2, -3)).flatten(-3)
