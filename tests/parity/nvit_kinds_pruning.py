"""Checks of NViT's reference files that concern scores and the schedule of masks."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from vitdown.models.backbones import NViT
from vitdown.models.pruning import (
    GlobalPruner,
    LatencyTable,
    Sizes,
    taylor_gate_scores,
    total_cost,
    unit_sums,
)
from vitdown.models.pruning.latency import AXES

from .golden import GoldenFile
from .nvit_kinds_model import (
    Classifier,
    full_arch,
    load_fused_deit,
    official_gradients,
    pruning_loss,
)


def aligned(golden: GoldenFile, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients with an axis of heads, as the pruned model of the reference has it."""
    model = golden.config['model']
    heads, dims = model['num_heads'], model['head_dims']
    out = {}
    for name, value in gradients.items():
        if '.attn.qkv.' in name and name.split('.')[-2] in 'QKV':
            value = value.view(heads, dims, *value.shape[1:]).movedim(0, -1)
        elif name.endswith('.attn.proj.proj.weight'):
            value = value.view(-1, heads, dims).transpose(1, 2)
        out[name.replace('.proj.proj.', '.proj.')] = value
    return out


def check_saliency(golden: GoldenFile) -> None:
    config = golden.config
    model = Classifier(config['model'], full_arch(config['model']), token_scale=True).eval()
    load_fused_deit(golden, model)
    pruner = GlobalPruner(
        model,
        cost=lambda points: np.ones(len(points)),
        group_sizes=dict.fromkeys(('emb', 'head', 'qk', 'v', 'mlp'), 1),
        saliency=config['saliency']['mode'],
        norm=config['saliency']['norm'],
    )
    assert [(u.kind, u.block, u.units) for u in pruner.layers] == [
        (u['structure'], u['block'], u['units']) for u in config['layers']
    ]
    with torch.no_grad():
        cls_logits, dist_logits = model.logits(golden.tensor('in/x_parity'))
    golden.compare('out/cls_logits', cls_logits)
    golden.compare('out/dist_logits', dist_logits)
    parameters = dict(model.named_parameters())
    total = None
    for batch in config['batches']:
        index = batch['index']
        model.zero_grad()
        loss = pruning_loss(golden, index, model.logits(golden.tensor(f'in/b{index}_x')))
        golden.compare(f'out/b{index}_loss', loss)
        loss.backward()
        if batch['gradients']:
            gradients = aligned(golden, official_gradients(model))
            sums = unit_sums(pruner.structure, parameters)
            for name in golden.tensors(f'grad_b{index}/'):
                if name.endswith('head_mask.weight'):
                    # The gradient of a gate is the sum of weight times gradient behind it.
                    block = int(name.split('.')[1])
                    value = sums[1 + 4 * block][:, None]
                else:
                    value = gradients[name]
                golden.compare(f'grad_b{index}/{name}', value)
        scores = taylor_gate_scores(pruner.structure, parameters, pruner.saliency, pruner.norm)
        total = scores if total is None else [a + b for a, b in zip(total, scores)]
        for layer, score in zip(config['layers'], total):
            golden.compare(f'out/sum_after_b{index}/layer{layer["index"]}', score)
        # The pruner's own sums are the same.
        pruner.accumulate()
        for own, score in zip(pruner.mean_scores(), total):
            torch.testing.assert_close(own * pruner.num_steps, score, rtol=1e-5, atol=0)


def latency_table(golden: GoldenFile) -> LatencyTable:
    config = golden.config['latency_table']
    assert config['axes'] == ['emb', 'heads', 'qk', 'v', 'mlp']
    assert config['interpolation'] == 'multilinear'
    axes = {name: golden[f'table/{name}'].astype(float) for name in AXES}
    axes['mlp'][0] = int(config['mlp_first_coordinate'].split()[0])
    zero = config['zero_plane']
    assert (zero['axis'], zero['coordinate'], zero['value']) == ('emb', 0, 0.0)
    return LatencyTable(axes, golden[config['values']])


def vit_of(layers: list[dict]) -> nn.Module:
    """A ViT of the given number of units."""
    by_kind = {(u['structure'], u['block']): u['units'] for u in layers}
    blocks = range(1 + max(u['block'] for u in layers if u['block'] is not None))
    arch = dict(embed_dims=by_kind['emb', None], num_layers=len(blocks))
    names = dict(head='num_heads', qk='qk_dims', v='v_dims', mlp='feedforward_channels')
    for kind, name in names.items():
        arch[name] = [by_kind[kind, block] for block in blocks]
    return NViT(arch, img_size=32)


class ScriptedPruner(GlobalPruner):
    """A pruner whose interval means are given."""

    scores: list[Tensor]

    def mean_scores(self) -> list[Tensor]:
        return self.scores


def check_schedule(golden: GoldenFile) -> None:
    config = golden.config
    table = latency_table(golden)
    probe = table(golden['probe/points'])
    golden.compare('f64/probe_latency', probe)
    target = config['latency_target']
    point = [[target['reference'][name] for name in ('emb', 'heads', 'qk', 'v', 'mlp')]]
    full = float(table(point)[0]) * target['reference']['num_blocks']
    golden.compare('f64/full_block_latency_x12', full)
    golden.compare('f64/latency_target', np.array([target['ratio'] * full]))

    layers = config['layers']
    resets = config['momentum_reset_after_events']
    assert resets in ([], [0])
    limits = config['latency_min_size']
    groups = config['group_sizes']
    assert limits == {**groups, 'emb': None}
    assert config['keep_one_group_per_layer']
    pruner = ScriptedPruner(
        vit_of(layers),
        table,
        cost_weight=config['latency_weight'],
        normalize_cost=False,
        prune_per_event=config['prune_per_event'],
        rank_unit=config['rank_unit'],
        max_units=config['max_units'],
        group_sizes=groups,
        momentum=config['momentum'],
        momentum_reset=bool(resets),
        bias_correction=config['bias_correction'],
        count_pruned=config['count_pruned_in_rank'],
    )
    assert pruner.num_groups == config['num_groups']
    regularised: dict[int, list[Tensor]] = {}
    plain = pruner.regularise

    def keep(scores: list[Tensor]) -> list[Tensor]:
        regularised[pruner.num_events] = plain(scores)
        return regularised[pruner.num_events]

    pruner.regularise = keep
    for event in range(config['num_events']):
        names = [f'layer{u["index"]}' for u in layers]
        pruner.scores = [golden.tensor(f'in/it{event}/mean_score/{name}') for name in names]
        before = pruner.sizes
        entry = pruner.event()
        golden.compare(f'f64/it{event}/threshold', entry['threshold'])
        for name, gate, score in zip(names, pruner.gates, regularised[event]):
            golden.compare(f'out/it{event}/gates/{name}', gate.to(torch.uint8))
            if event in config['regularised_events']:
                golden.compare(f'out/it{event}/regularised/{name}', score)
        golden.compare(f'out/it{event}/dims', torch.tensor(entry['kept']))
        after = pruner.sizes
        assert after == Sizes.from_counts(entry['kept'])
        if config['stale_emb_latency']:
            assert pruner.stale_emb_cost(before) == total_cost(
                table, replace(after, emb=before.emb)
            )
            golden.compare(f'f64/it{event}/latency', pruner.stale_emb_cost(before))
        else:
            golden.compare(f'f64/it{event}/latency', total_cost(table, after))


KINDS: dict[str, Callable[[GoldenFile], None]] = {
    'nvit_saliency': check_saliency,
    'nvit_prune_schedule': check_schedule,
}
