import numpy as np
import pytest
import torch
from mmpretrain.structures import DataSample
from torch.utils.flop_counter import FlopCounterMode

from vitdown.models.backbones import NViT
from vitdown.models.pruning import (
    KINDS,
    GlobalPruner,
    LatencyTable,
    MultiplyAdds,
    NormalizedCost,
    Parameters,
    Sizes,
    ViTStructure,
    dense_model_cfg,
    export_dense,
    grid_axes,
    group_units,
    magnitude_scores,
    mask_2_to_4,
    measure,
    measure_latency,
    prune_groups,
    random_scores,
    rank_index,
    taylor_gate_scores,
    to_semi_structured,
    total_cost,
    unit_savings,
    unit_sums,
)
from vitdown.models.pruning.measure import time_module
from vitdown.models.pruning.semi_structured import sparse_layers
from vitdown.registry import MODELS

VIT = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48),
    img_size=(32, 16),
    patch_size=8,
)
BNNECK = dict(type='BNNeckHead', num_classes=4, in_channels=24)
HEADS = {
    'bnneck': BNNECK,
    'after': {**BNNECK, 'neck_feat': 'after'},
    'dcal': dict(type='DCALHead', num_classes=4, in_channels=24, num_heads=3),
    'dcal-mean': dict(
        type='DCALHead', num_classes=4, in_channels=24, num_heads=3,
        glca=dict(pool='mean', ratio=0.5, input='penultimate'),
    ),
}  # fmt: skip
BACKBONES = {
    'plain': VIT,
    'sie': {**VIT, 'sie': dict(num_cameras=2)},
    'no-bias': {**VIT, 'qkv_bias': False, 'layer_scale_init_value': 0.1},
    'fusion': {**VIT, 'token_fusion': dict(type='ToMe', r=1)},
    'nvit': {
        **VIT,
        'type': 'NViT',
        'token_scale': True,
        'arch': dict(
            embed_dims=24, num_layers=2, num_heads=[2, 3], qk_dims=8, v_dims=[4, 8],
            feedforward_channels=[32, 48],
        ),
    },
}  # fmt: skip
UNIT_GROUPS = dict(emb=1, head=1, qk=1, v=1, mlp=1)


def config(backbone=VIT, head=BNNECK):
    return dict(type='ReIdentifier', backbone=backbone, head=head)


def build(backbone=VIT, head=BNNECK):
    torch.manual_seed(0)
    model = MODELS.build(config(backbone, head))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def samples(n):
    return [DataSample(metainfo=dict(camera_id=i % 2)).set_gt_label(i // 2) for i in range(n)]


def backward(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(8, 3, 32, 16, generator=generator)
    loss, _ = model.parse_losses(model(images, samples(8), mode='loss'))
    loss.backward()
    return loss


def random_gates(structure, kinds=KINDS):
    generator = torch.Generator().manual_seed(1)
    gates = structure.full_gates()
    for layer, gate in zip(structure.layers, gates):
        if layer.kind in kinds:
            gone = torch.randperm(layer.units, generator=generator)[: layer.units // 2]
            gate[gone] = False
    return gates


@torch.no_grad()
def apply(structure, model, gates):
    for parameter, mask in structure.weight_masks(model, gates):
        parameter.mul_(mask)


@torch.no_grad()
@pytest.mark.parametrize('backbone', BACKBONES)
@pytest.mark.parametrize('head', HEADS)
def test_exact_export_computes_what_the_masked_model_computes(backbone, head):
    cfg = config(BACKBONES[backbone], HEADS[head])
    model = build(cfg['backbone'], cfg['head']).eval()
    structure = ViTStructure(model)
    # A masked head attends evenly, which the choice of patches counts and the dense model cannot.
    kinds = ('emb', 'qk', 'v', 'mlp') if head == 'dcal-mean' else KINDS
    gates = random_gates(structure, kinds)
    apply(structure, model, gates)
    images = torch.rand(4, 3, 32, 16)
    masked = model(images, samples(4))
    kept = gates[0].repeat(masked.shape[1] // 24)
    assert not masked[:, ~kept].any(), 'pruned channels of the feature are zero'
    _, dense = export_dense(cfg, model, structure, gates, 'exact')
    torch.testing.assert_close(dense(images, samples(4)), masked[:, kept], rtol=0, atol=1e-5)
    assert dense.backbone.embed_dims == 12
    assert sum(p.numel() for p in dense.parameters()) < sum(p.numel() for p in model.parameters())


@torch.no_grad()
def test_both_tokens_of_a_distilled_model_are_exported():
    head = dict(type='vitdown.DistilledClsHead', num_classes=5, in_channels=24)
    backbone = {**VIT, 'type': 'vitdown.DistilledVisionTransformer'}
    cfg = dict(type='mmpretrain.ImageClassifier', backbone=backbone, head=head)
    torch.manual_seed(0)
    model = MODELS.build(cfg).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    structure = ViTStructure(model)
    gates = random_gates(structure)
    apply(structure, model, gates)
    images = torch.rand(4, 3, 32, 16)
    masked = model(images)
    dense_cfg, dense = export_dense(cfg, model, structure, gates, 'exact')
    assert dense_cfg['backbone']['with_dist_token']
    torch.testing.assert_close(dense(images), masked, rtol=0, atol=1e-5)
    # And of what is left of it
    structure = ViTStructure(dense)
    gates = random_gates(structure, ('mlp',))
    apply(structure, dense, gates)
    _, denser = export_dense(dense_cfg, dense, structure, gates, 'exact')
    torch.testing.assert_close(denser(images), dense(images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_export_without_embedding_is_exact_by_itself():
    model = build().eval()
    structure = ViTStructure(model)
    gates = random_gates(structure, ('head', 'qk', 'v', 'mlp'))
    apply(structure, model, gates)
    cfg, dense = export_dense(config(), model, structure, gates)
    assert 'ln_mode' not in cfg['backbone']
    images = torch.rand(4, 3, 32, 16)
    torch.testing.assert_close(dense(images), model(images), rtol=0, atol=1e-5)
    # What is left can be pruned again.
    again = ViTStructure(dense)
    assert again.sizes == Sizes.from_counts(structure.counts(gates))
    assert dense_model_cfg(cfg, dense, again, random_gates(again))['backbone']['type'].endswith(
        'NViT'
    )


@torch.no_grad()
def test_exact_export_of_an_exact_export_keeps_the_first_width():
    model, cfg = build().eval(), config()
    for _ in range(2):
        structure = ViTStructure(model)
        gates = random_gates(structure, ('emb',))
        apply(structure, model, gates)
        images = torch.rand(4, 3, 32, 16)
        masked = model(images)
        cfg, model = export_dense(cfg, model, structure, gates, 'exact')
        assert cfg['backbone']['norm_dims'] == 24
        torch.testing.assert_close(model(images), masked[:, gates[0]], rtol=0, atol=1e-5)


def test_norm_of_the_patch_embedding_has_no_exact_export():
    backbone = {**VIT, 'patch_cfg': dict(norm_cfg=dict(type='LN'))}
    model = build(backbone)
    structure = ViTStructure(model)
    for kind in ('mlp', 'emb'):
        args = (config(backbone), model, structure, random_gates(structure, (kind,)))
        export_dense(*args)
        if kind == 'mlp':
            export_dense(*args, 'exact')
            continue
        with pytest.raises(ValueError, match='does not reach the norm of the patch embedding'):
            export_dense(*args, 'exact')


def test_dense_model_trains():
    cfg = config(VIT, HEADS['dcal'])
    model = build(VIT, HEADS['dcal'])
    structure = ViTStructure(model)
    for mode in ('dense', 'exact'):
        _, dense = export_dense(cfg, model, structure, random_gates(structure), mode)
        dense.init_weights()
        backward(dense)
        assert all(p.grad is not None for p in dense.parameters() if p.requires_grad)


def test_gates_from_zeros():
    model = build()
    structure = ViTStructure(model)
    gates = random_gates(structure)
    apply(structure, model, gates)
    for found, gate in zip(structure.gates_from_zeros(model.state_dict()), gates):
        assert torch.equal(found, gate)
    with torch.no_grad():
        model.backbone.layers[1].ffn.layers[0][0].weight.zero_()
    with pytest.raises(ValueError, match='block 1 mlp are all zero'):
        structure.gates_from_zeros(model.state_dict())


def finite_difference(model, structure, layer, unit, step=1e-3):
    """Derivative of the loss by a gate on what counts for a unit of a kind."""

    def loss(gate):
        block = model.backbone.layers[layer.block]
        if layer.kind == 'mlp':
            handle = block.ffn.layers[0][0].register_forward_hook(
                lambda m, a, out: torch.cat(
                    (out[..., :unit], gate * out[..., unit : unit + 1], out[..., unit + 1 :]), -1
                )
            )
        else:
            heads, qk, v, _ = structure.sizes.blocks[layer.block]
            query, key, value = (torch.ones(heads, d, dtype=torch.float64) for d in (qk, qk, v))
            if layer.kind == 'head':
                for part in (query, key, value):
                    part[unit] = gate
            elif layer.kind == 'qk':
                query[:, unit] = gate
            else:
                value[:, unit] = gate
            factor = torch.cat([part.flatten() for part in (query, key, value)])
            handle = block.attn.qkv.register_forward_hook(lambda m, a, out: out * factor)
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(8, 3, 32, 16, generator=generator).double()
        value, _ = model.parse_losses(model(images, samples(8), mode='loss'))
        handle.remove()
        return value.item()

    return (loss(1 + step) - loss(1 - step)) / (2 * step)


def test_scores_are_squared_derivatives_of_gates():
    # No triplets: which one is the hardest is no smooth function of a gate.
    model = build(head={**BNNECK, 'loss_metric': None}).double()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 32, 16, generator=generator).double()
    loss, _ = model.parse_losses(model(images, samples(8), mode='loss'))
    loss.backward()
    structure = ViTStructure(model)
    scores = taylor_gate_scores(structure, dict(model.named_parameters()))
    norm = dict(head=12, qk=2, v=2, mlp=1)
    for layer, score in zip(structure.layers[1:], scores[1:]):
        for unit in (0, layer.units - 1):
            slope = finite_difference(model, structure, layer, unit)
            expected = (slope / norm[layer.kind]) ** 2
            assert score[unit].item() == pytest.approx(expected, rel=1e-3, abs=1e-9), layer.name


def test_paper_mode_counts_all_that_is_removed():
    model = build()
    backward(model)
    structure = ViTStructure(model)
    parameters = dict(model.named_parameters())
    sums = unit_sums(structure, parameters, 'paper')
    for index, layer in ((0, structure.layers[0]), (1, structure.layers[1]),
                         (2, structure.layers[2]), (3, structure.layers[3]),
                         (4, structure.layers[4])):  # fmt: skip
        gates = structure.full_gates()
        gates[index][1] = False
        expected, touched = 0.0, {}
        for parameter, mask in structure.weight_masks(model, gates):
            left = touched.get(parameter, torch.ones_like(parameter))
            touched[parameter] = left * mask
        for parameter, left in touched.items():
            if parameter.grad is not None:
                expected += ((1 - left) * parameter * parameter.grad).sum().item()
        assert sums[index][1].item() == pytest.approx(expected, rel=1e-3, abs=1e-6), layer.name


def test_scores_of_equivalent_weights_are_equal():
    """Scaling values up and the projection down changes nothing, nor do scaled queries."""
    model = build()
    backward(model)
    structure = ViTStructure(model)
    before = taylor_gate_scores(structure, dict(model.named_parameters()))
    model.zero_grad()
    attn = model.backbone.layers[0].attn
    with torch.no_grad():
        for rows, factor in ((slice(0, 24), 2.0), (slice(24, 48), 0.5), (slice(48, 72), 4.0)):
            attn.qkv.weight[rows] *= factor
            attn.qkv.bias[rows] *= factor
        attn.proj.weight /= 4
    backward(model)
    after = taylor_gate_scores(structure, dict(model.named_parameters()))
    for own, other in zip(after[1:], before[1:]):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-9)


def test_pruned_units_and_lost_gradients_score_nothing():
    model = build()
    structure = ViTStructure(model)
    gates = random_gates(structure)
    apply(structure, model, gates)
    backward(model)
    for score, gate in zip(taylor_gate_scores(structure, dict(model.named_parameters())), gates):
        assert not score[~gate].any()
        assert score[gate].all()
    linear = model.backbone.layers[0].ffn.layers[0][0]
    for value in (float('nan'), float('inf'), -float('inf')):
        linear.weight.grad[3], linear.bias.grad[3] = 0, value
        scores = taylor_gate_scores(structure, dict(model.named_parameters()))
        assert scores[4][3] == 0
        assert torch.cat(scores).isfinite().all()


def test_baselines():
    model = build()
    structure = ViTStructure(model)
    scores = magnitude_scores(structure, dict(model.named_parameters()))
    fc1, fc2 = model.backbone.layers[1].ffn.layers[0][0], model.backbone.layers[1].ffn.layers[1]
    expected = fc1.weight.square().sum(1) + fc1.bias.square() + fc2.weight.square().sum(0)
    torch.testing.assert_close(scores[8], expected)


def test_random_choice_takes_any_group_alike():
    structure = ViTStructure(build())
    sizes = dict(emb=8, head=1, qk=4, v=4, mlp=16)
    first, second = (random_scores(structure, sizes, 3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert not torch.equal(first[0], random_scores(structure, sizes, 4)[0])
    drawn = [random_scores(structure, sizes, seed) for seed in range(100)]
    for i, layer in enumerate(structure.layers):
        gate, size = torch.ones(layer.units), sizes[layer.kind]
        sums = torch.cat([group_units(scores[i], gate, size)[1] for scores in drawn])
        assert 0 <= sums.min() < sums.max() < 1
        assert sums.mean().item() == pytest.approx(0.5, abs=0.1), layer.name


def test_groups_are_formed_by_rank():
    scores = torch.tensor([5.0, 0.0, 1.0, 0.0, 3.0, 2.0])
    gate = torch.tensor([1, 1, 1, 0, 1, 1], dtype=torch.bool)
    groups, sums = group_units(scores, gate, 2)
    assert groups.tolist() == [[3, 1], [2, 5], [4, 0]]
    assert sums.tolist() == [0.0, 3.0, 8.0]


def test_rank_of_the_threshold():
    assert [rank_index(k, 100, 32, 16) for k in range(4)] == [0, 1, 3, 5]
    assert rank_index(90, 100, 32, 16) == 99
    assert rank_index(90, 1000, 32, 16, max_units=160) == 9


def test_last_group_of_a_layer_stays():
    structure = ViTStructure(build())
    layers = structure.layers
    scores = [torch.full((layer.units,), 0.5) for layer in layers]
    sizes = dict(emb=8, head=1, qk=4, v=4, mlp=16)
    gates, threshold = prune_groups(layers, scores, structure.full_gates(), sizes, 10**6)
    assert structure.counts(gates) == [8, 1, 4, 4, 16, 1, 4, 4, 16]
    assert threshold == 8
    gates, _ = prune_groups(layers, scores, structure.full_gates(), sizes, 10**6, kinds=('mlp',))
    assert structure.counts(gates) == [24, 3, 8, 8, 16, 3, 8, 8, 16]


def test_events_prune_as_much_each_where_pruned_groups_have_no_rank():
    new = dict(group_sizes=UNIT_GROUPS, prune_per_event=2, rank_unit=1, cost_weight=0)
    one = pruner(build(), count_pruned=False, saliency='magnitude', **new)
    kept = [sum(one.event()['kept']) for _ in range(6)]
    steps = {before - after for before, after in zip(kept, kept[1:])}
    assert steps == {2}


@pytest.mark.parametrize(('count_pruned', 'goes'), [(True, 0), (False, 1)])
def test_pruned_groups_have_a_rank_or_not(count_pruned, goes):
    structure = ViTStructure(build())
    sizes = dict(emb=8, head=1, qk=4, v=4, mlp=16)
    scores = [torch.rand(layer.units) + 1 for layer in structure.layers]
    gates = structure.full_gates()
    gates[4][:16], scores[4][:16] = False, 0
    new, _ = prune_groups(structure.layers, scores, gates, sizes, 0, count_pruned=count_pruned)
    assert sum(bool((a != b).any()) for a, b in zip(new, gates)) == goes


@pytest.mark.parametrize('tied', [False, True])
def test_no_group_goes_that_is_not_needed(tied):
    structure = ViTStructure(build())
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(layer.units, generator=generator) for layer in structure.layers]
    if tied:
        scores = [torch.zeros_like(score) for score in scores]
    sizes = dict(emb=8, head=1, qk=4, v=4, mlp=16)
    args = (structure.layers, scores, structure.full_gates(), sizes, 10**6)

    def left(gates):
        return sum(structure.counts(gates))

    lowest, highest_score = prune_groups(*args)
    for bound in (left(structure.full_gates()) - 1, 120, 60, left(lowest)):
        gates, threshold = prune_groups(*args, enough=lambda g, bound=bound: left(g) <= bound)
        assert bound - 16 < left(gates) <= bound
        assert threshold <= highest_score
        assert not any((low & ~gate).any() for gate, low in zip(gates, lowest))
    gates, threshold = prune_groups(*args, enough=lambda g: left(g) < left(lowest))
    assert left(gates) == left(lowest)
    assert threshold == highest_score


def pruner(model, **kwargs):
    options = dict(
        cost=MultiplyAdds(9), cost_weight=1e-3, prune_per_event=4, rank_unit=1,
        group_sizes=dict(emb=4, head=1, qk=2, v=2, mlp=8),
    )  # fmt: skip
    return GlobalPruner(model, **{**options, **kwargs})


def run(pruner, events, steps=2, lr=1e-3):
    optimizer = torch.optim.AdamW(pruner.model.parameters(), lr=lr)
    optimizer.register_step_post_hook(lambda *args: (pruner.apply_masks(), pruner.accumulate()))
    for event in range(events):
        for step in range(steps):
            optimizer.zero_grad()
            backward(pruner.model, seed=10 * event + step)
            optimizer.step()
        pruner.event()


@pytest.mark.parametrize('head', ['bnneck', 'dcal'])
def test_pruning_run_keeps_its_promises(head):
    own = pruner(build(head=HEADS[head]))
    seen = []
    for _ in range(8):
        run(own, 1)
        seen.append(own.gates)
    ratios = [entry['cost_ratio'] for entry in own.history]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < 0.6
    for before, after in zip(seen, seen[1:]):
        assert all((new <= old).all() for new, old in zip(after, before))
    for layer, gate in zip(own.layers, own.gates):
        assert int(gate.sum()) % own.group_sizes[layer.kind] == 0
        assert gate.any()
    for parameter, mask in own.structure.weight_masks(own.model, own.gates):
        assert not (parameter * ~mask).any(), 'pruned weights stay zero'
    assert own.cost_ratio == pytest.approx(
        total_cost(MultiplyAdds(9), own.sizes) / total_cost(MultiplyAdds(9), own.structure.sizes)
    )


def test_cost_weight_reaches_a_target_in_fewer_events():
    def events_to_half(weight):
        own = pruner(build(), cost_weight=weight)
        while own.cost_ratio > 0.5:
            run(own, 1, steps=1)
            assert own.num_events < 100
        return own.num_events

    assert events_to_half(10.0) < events_to_half(0.0)


@pytest.mark.parametrize('normalize', [True, False])
def test_cost_of_a_unit_is_a_share_of_the_full_model_or_raw(normalize):
    own = pruner(build(), cost_weight=3.0, normalize_cost=normalize)
    zeros = [torch.zeros(layer.units) for layer in own.layers]
    savings = unit_savings(MultiplyAdds(9), own.layers, own.sizes, dict(head=1, qk=2, v=2, mlp=8))
    if normalize:
        savings = savings / total_cost(MultiplyAdds(9), own.sizes)
    for scores, saving in zip(own.regularise(zeros), savings):
        torch.testing.assert_close(scores, (-3 * saving).expand_as(scores))


@pytest.mark.parametrize('options', [dict(saliency='paper'), dict(norm=dict(qk=8.0, mlp=4.0))])
def test_steps_are_scored_as_told(options):
    model = build()
    own = pruner(model, **options)
    for seed in range(2):
        model.zero_grad()
        backward(model, seed)
        own.accumulate()
    mode, norm = options.get('saliency', 'nvit'), options.get('norm')
    expected = [torch.zeros(layer.units) for layer in own.layers]
    for seed in range(2):
        model.zero_grad()
        backward(model, seed)
        scores = taylor_gate_scores(own.structure, dict(model.named_parameters()), mode, norm)
        expected = [total + score / 2 for total, score in zip(expected, scores)]
    for found, mean, plain in zip(
        own.mean_scores(), expected, taylor_gate_scores(own.structure, own._parameters)
    ):
        torch.testing.assert_close(found, mean)
        assert not torch.allclose(found, plain)


def test_state_goes_on_where_it_was():
    whole = pruner(build())
    run(whole, 3)
    first = pruner(build())
    run(first, 2)
    state = first.state_dict()
    second = pruner(build())
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(state)
    assert second.num_events == 2
    assert second.state_dict()['updates'] == state['updates'] == 1
    # Nothing of an interval is counted in the next one.
    assert (state['sum'], state['num_steps']) == (None, 0)
    # Also a model whose pruned weights have come back is masked again.
    fresh = pruner(build())
    fresh.load_state_dict(state)
    fresh.apply_masks()
    masks = fresh.structure.weight_masks(fresh.model, first.gates)
    assert masks
    assert not any((parameter * ~mask).any() for parameter, mask in masks)
    # The optimizer's moments are the run's, not the pruner's: compare with a restarted optimizer.
    run(first, 1)
    run(second, 1)
    assert all(torch.equal(a, b) for a, b in zip(first.gates, second.gates))
    wider = build({**VIT, 'arch': {**VIT['arch'], 'feedforward_channels': 64}})
    with pytest.raises(ValueError, match='a model of other sizes'):
        pruner(wider).load_state_dict(state)


def test_momentum_reset_and_bias_correction():
    ones = [torch.ones(layer.units) for layer in ViTStructure(build()).layers]

    def averages(**kwargs):
        own = pruner(build(), **kwargs)
        values = []
        for _ in range(3):
            values.append(own.blend(ones)[0][0].item())
            own.history.append({})
        return values

    assert averages() == pytest.approx([1, 0.1, 0.19])
    assert averages(bias_correction=True) == pytest.approx([1, 1, 1])
    for corrected in (False, True):
        found = averages(momentum_reset=False, bias_correction=corrected)
        assert found == pytest.approx([1, 1, 1]), 'it does not grow from zero'


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(saliency='hessian'), 'saliency must be one of'),
        (dict(momentum=1.0), r'momentum must be in \[0, 1\)'),
        (dict(kinds=['emb', 'mpl']), "structures has no 'mpl'"),
        (dict(group_sizes=dict(heads=2)), "group_sizes has no 'heads'"),
        (
            dict(group_sizes=dict(emb=4, head=2)),
            r'block 0 head has 3.*group_sizes=dict\(head=',
        ),
        (dict(prune_per_event=1, rank_unit=16), 'would not grow'),
        (dict(kinds=()), 'structures is empty'),
        (dict(cost_weight=-1.0), 'cost_weight must be finite and at least 0'),
        (dict(cost_weight=float('nan')), 'cost_weight must be finite and at least 0'),
        (dict(max_units=0), 'max_units=0 is below rank_unit=1'),
        (dict(rank_unit=0), 'rank_unit must be an integer of at least 1, got 0'),
        (dict(prune_per_event=2.5), 'prune_per_event must be an integer'),
        (dict(group_sizes=dict(emb=4.0)), r'group_sizes\.emb must be an integer'),
        (dict(norm=dict(emb=0)), r'norm\.emb must be finite and above 0, got 0'),
        (dict(norm=dict(qk=float('nan'))), r'norm\.qk must be finite and above 0'),
        (dict(momentum='a'), r"momentum must be in \[0, 1\), got 'a'"),
    ],
)
def test_mistakes_get_one_message(kwargs, message):
    with pytest.raises(ValueError, match=message):
        pruner(build(), **kwargs)


def test_models_that_cannot_be_pruned():
    jigsaw = build(head=dict(type='JPMHead', num_classes=4, in_channels=24, num_groups=2))
    for embedding in (True, False):
        with pytest.raises(ValueError, match='JPMHead has a copy of the last block'):
            ViTStructure(jigsaw, embedding)
    with pytest.raises(ValueError, match="Linear is not one of vitdown's VisionTransformer, "):
        ViTStructure(torch.nn.Linear(2, 2))
    # Has its class token and positions another way, which the dense NViT has not.
    with pytest.raises(ValueError, match='DeiT3 is not one of .*, NViT'):
        ViTStructure(build({**VIT, 'type': 'vitdown.DeiT3'}))
    with pytest.raises(ValueError, match='frozen_stages=-1'):
        pruner(build({**VIT, 'frozen_stages': 1}))
    arcface = dict(
        type='MetricLearningLoss',
        loss=dict(type='ArcFaceLoss', num_classes=4, embedding_size=24),
    )
    model = build(head={**BNNECK, 'loss_id': arcface})
    with pytest.raises(ValueError, match='losses without weights of their own'):
        ViTStructure(model)
    model = build()
    model.head = torch.nn.Bilinear(24, 24, 3)
    with pytest.raises(ValueError, match='how Bilinear reads the embedding'):
        ViTStructure(model)
    # Without the embedding, any head will do.
    assert ViTStructure(model, embedding=False).sizes.emb == 24


def test_costs_count_what_the_model_has():
    from vitdown.engine.complexity import get_flops

    arch = dict(
        embed_dims=24, num_layers=2, num_heads=[2, 3], qk_dims=[8, 4], v_dims=[4, 12],
        feedforward_channels=[16, 40],
    )  # fmt: skip
    model = NViT(arch, img_size=32, patch_size=8)
    sizes = ViTStructure(model).sizes
    assert total_cost(Parameters(), sizes) == sum(p.numel() for p in model.layers.parameters())
    flops = get_flops(model, (3, 32, 32)).by_module
    found = sum(flops[f'NViT.layers.{i}'] for i in range(2))
    assert total_cost(MultiplyAdds(17), sizes) == found
    assert NormalizedCost(MultiplyAdds(17), sizes)(sizes.points().numpy()).sum() == pytest.approx(1)


def test_savings_of_one_unit():
    structure = ViTStructure(build())
    cost, sizes = Parameters(), structure.sizes
    limits = dict(head=3, qk=2, v=2, mlp=8)
    savings = unit_savings(cost, structure.layers, sizes, limits)
    full = total_cost(cost, sizes)
    for index, layer in enumerate(structure.layers):
        counts = [unit.units for unit in structure.layers]
        counts[index] -= 1
        expected = full - total_cost(cost, Sizes.from_counts(counts))
        assert savings[index] == (0 if layer.kind == 'head' else expected)


def additive_table(**kwargs):
    axes = dict(emb=[8, 24], heads=[1, 3], qk=[1, 8], v=[1, 8], mlp=[1, 16, 48])
    grid = np.meshgrid(*axes.values(), indexing='ij')
    values = 1e-6 * (grid[0] * (grid[1] * (grid[2] + grid[3]) + grid[4]) + 5)
    return LatencyTable(axes, values, **kwargs)


def test_latency_table_interpolates_and_knows_its_limits(tmp_path):
    table = additive_table(info=dict(device='test'))
    points = np.array([[24, 3, 8, 8, 48], [24, 2, 4, 8, 20], [4, 1, 1, 1, 1]])
    expected = 1e-6 * (24 * (3 * 16 + 48) + 5), 1e-6 * (24 * (2 * 12 + 20) + 5)
    np.testing.assert_allclose(table(points)[:2], expected)
    # Half-way to no embedding, half of the time of the smallest one
    assert table(points)[2] == pytest.approx(1e-6 * (8 * 3 + 5) / 2)
    with pytest.raises(ValueError, match="'mlp': 49.*outside the latency table"):
        table(np.array([[24, 3, 8, 8, 49]]))
    table.save(tmp_path / 'table.json')
    loaded = LatencyTable.load(tmp_path / 'table.json')
    np.testing.assert_array_equal(loaded(points), table(points))
    assert loaded.info == dict(device='test')
    assert loaded.fingerprint() == table.fingerprint()
    assert LatencyTable(table.axes, 2 * table.values).fingerprint() != table.fingerprint()
    with pytest.raises(FileNotFoundError, match=r'measure_latency\.py'):
        LatencyTable.load(tmp_path / 'none.json')
    (tmp_path / 'other.json').write_text('{"axes": 3}')
    with pytest.raises(ValueError, match='is not a latency table'):
        LatencyTable.load(tmp_path / 'other.json')


def test_noise_is_found_and_evened_out():
    table = additive_table()
    assert table.negative_slopes() == 0
    noisy = table.values.copy()
    noisy[1, 1, 1, 1, 1] *= 3
    table = LatencyTable(table.axes, noisy)
    assert table.negative_slopes() > 0
    assert table.monotone().negative_slopes() == 0
    dent = additive_table()
    dent.values[...] = [1.0, 3.0, 2.0]
    assert (dent.monotone().values == [1.0, 2.5, 2.5]).all(), 'half-way between the bounds'
    for bad in (np.where(noisy > 0, np.nan, 0), -noisy, noisy[:1]):
        with pytest.raises(ValueError, match='atenc'):
            LatencyTable(table.axes, bad)
    with pytest.raises(ValueError, match=r"\['mlp'\] are missing"):
        LatencyTable({k: v for k, v in table.axes.items() if k != 'mlp'}, noisy)
    with pytest.raises(ValueError, match='emb of the latency table is not ascending'):
        LatencyTable({**table.axes, 'emb': [24, 8]}, noisy)


@pytest.mark.parametrize('separable', [True, False])
def test_measured_table_covers_the_model(separable):
    sizes = ViTStructure(build()).sizes
    axes = grid_axes(sizes, points=2, mlp_points=2)
    assert axes == dict(emb=[6, 24], heads=[1, 3], qk=[1, 8], v=[1, 8], mlp=[1, 48])
    table = measure_latency(axes, 9, 2, repeats=3, warmup=1, separable=separable)
    assert total_cost(table, sizes) > 0
    assert total_cost(table, Sizes(4, ((1, 2, 2, 8), (1, 2, 2, 8)))) > 0
    assert table.info['num_tokens'] == 9
    assert table.info['device']
    assert table.info['spread'] >= 0


@pytest.mark.parametrize('separable', [True, False])
def test_every_size_is_measured(separable, monkeypatch):
    """With the multiply-adds for a clock, a block that is larger in any way takes longer."""

    def count(run, *args):
        with FlopCounterMode(display=False) as counter:
            run()
        return 1e-9 * counter.get_total_flops(), 0.3

    monkeypatch.setattr(measure, 'time_module', count)
    axes = dict(emb=[4, 6], heads=[1, 3], qk=[2, 5], v=[1, 4], mlp=[1, 7])
    table = measure_latency(axes, 9, 2, separable=separable)
    for axis in range(5):
        assert (np.diff(table.values, axis=axis) > 0).all(), axis
    assert table.info['spread'] == pytest.approx(0.3)


def test_every_size_is_measured_compiled(monkeypatch):
    """Also beyond the number of shapes that the compiler takes of one function."""
    compiled, compile = [], torch.compile

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(measure.torch, 'compile', lambda m: compile(m, backend=backend))
    axes = dict(emb=[4, 6], heads=[1, 3], qk=[2, 3, 5], v=[1], mlp=[1, 7])
    assert torch._dynamo.config.recompile_limit < 12
    table = measure_latency(axes, 9, 2, repeats=2, warmup=1, passes=1, compile=True)
    assert len(compiled) == 12 + 4
    assert table.info['compile']
    assert not table.info['cpu_time']


def test_median_and_spread_of_repeats(monkeypatch):
    times = iter([0, 1, 10, 12, 20, 23])
    monkeypatch.setattr(measure.time, 'perf_counter', lambda: next(times))
    assert time_module(lambda: None, torch.device('cpu'), repeats=3) == (2, 1)


def test_the_fastest_pass_counts(monkeypatch):
    slow = iter([9.0] * 4 + [1.0] * 4 + [5.0] * 4)
    monkeypatch.setattr(measure, 'time_module', lambda *args: (next(slow), 0.0))
    axes = dict(emb=[4, 6], heads=[1], qk=[2], v=[1], mlp=[1, 7])
    table = measure_latency(axes, 9, 2, separable=False)
    assert (table.values == 1.0).all()
    assert next(slow, None) is None


@pytest.mark.parametrize(
    'kwargs',
    [dict(batch_size=0), dict(batch_size=1, repeats=1), dict(batch_size=1, passes=0)],
)
def test_nothing_is_measured_that_makes_no_table(kwargs):
    axes = dict(emb=[4, 6], heads=[1, 3], qk=[2, 5], v=[1, 4], mlp=[1, 7])
    with pytest.raises(ValueError, match='batch_size of at least 1, at least 2 repeats'):
        measure_latency(axes, 9, **kwargs)


def test_two_of_four_neighbours_stay():
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5, 0.0, 0.0, 0.0, 4.0]])
    assert mask_2_to_4(weight).tolist() == [[False, True, True, False, True, False, False, True]]
    sparse = weight * mask_2_to_4(weight)
    assert torch.equal(sparse * mask_2_to_4(sparse), sparse)
    with pytest.raises(ValueError, match=r'multiple of 4 weights, got \(1, 6\)'):
        mask_2_to_4(weight[:, :6])


def test_sparse_kernels_are_refused_where_there_are_none():
    arch = dict(embed_dims=64, num_layers=1, num_heads=2, feedforward_channels=96)
    model = NViT(arch, img_size=32, patch_size=8)
    assert list(sparse_layers(model)) == ['0.attn.qkv', '0.attn.proj', '0.ffn.layers.0.0']
    with pytest.raises(RuntimeError, match='16-bit floats on a GPU, the model is torch.float32'):
        to_semi_structured(model)
    with pytest.raises(ValueError, match='multiples of 32 and 64'):
        to_semi_structured(build())
    with pytest.raises(ValueError, match='not for Linear'):
        to_semi_structured(torch.nn.Linear(2, 2))
