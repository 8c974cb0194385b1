"""What rollout, pairing and the two cross-attentions promise beyond the reference values."""

import math

import pytest
import torch

from tests.tensor_sizes import LargestTensor
from vitdown.models.layers import (
    GLCABlock,
    TransformerEncoderLayer,
    attention_rollout,
    attention_rollout_cls,
    pair_indices,
    pairwise_cross_attention,
    select_top_r,
)
from vitdown.models.losses import UncertaintyWeightedLoss

LAYER = dict(embed_dims=12, num_heads=3, feedforward_channels=24)


def attentions(num_layers=4, batch=2, heads=3, tokens=7):
    torch.manual_seed(0)
    return [torch.randn(batch, heads, tokens, tokens).softmax(dim=-1) for _ in range(num_layers)]


def layer(kind=TransformerEncoderLayer):
    torch.manual_seed(0)
    module = kind(**LAYER)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def test_rollout_rows_sum_to_one():
    rollout = attention_rollout(attentions())
    torch.testing.assert_close(rollout.sum(-1), torch.ones(2, 7), rtol=0, atol=1e-6)


@pytest.mark.parametrize('residual', [0.5, 0.2])
def test_rollout_vector_is_the_first_row_of_the_matrix(residual):
    attns = [attn.double() for attn in attentions()]
    rollout = attention_rollout(attns, residual)
    torch.testing.assert_close(
        attention_rollout_cls(attns, residual), rollout[:, 0], rtol=0, atol=1e-12
    )


def test_rollout_takes_head_means_and_factors():
    torch.manual_seed(0)
    factors = [(torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)) for _ in range(3)]
    maps = [(q @ k.transpose(-2, -1)).softmax(dim=-1) for q, k in factors]
    expected = attention_rollout(maps)
    torch.testing.assert_close(attention_rollout([m.mean(1) for m in maps]), expected)
    torch.testing.assert_close(attention_rollout_cls(factors), expected[:, 0])
    half = [(q.bfloat16(), k.bfloat16()) for q, k in factors]
    assert attention_rollout_cls(half).dtype == torch.float32


@pytest.mark.parametrize('function', [attention_rollout, attention_rollout_cls])
def test_rollout_keeps_its_precision_under_autocast(function):
    expected = function(attentions())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(function(attentions()), expected)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_rollout_of_factors_holds_the_attention_of_one_head(dtype):
    batch, heads, tokens, dims = 2, 6, 50, 4
    factors = [tuple(torch.randn(2, batch, heads, tokens, dims, dtype=dtype)) for _ in range(3)]
    for rollout in (attention_rollout, attention_rollout_cls):
        with LargestTensor() as largest:
            rollout(factors)
        assert largest.numel == batch * tokens * tokens


def test_rollout_depends_on_the_order_of_the_layers():
    attns = attentions()
    assert not torch.allclose(attention_rollout_cls(attns), attention_rollout_cls(attns[::-1]))


def test_rollout_of_uniform_and_of_identical_attention():
    uniform = [torch.full((1, 2, 7, 7), 1 / 7)] * 3
    scores = attention_rollout_cls(uniform)[:, 1:]
    torch.testing.assert_close(scores, scores[:, :1].expand(-1, 6))
    identity = [torch.eye(7).expand(1, 2, 7, 7)] * 3
    torch.testing.assert_close(attention_rollout_cls(identity), torch.eye(7)[:1])


def test_rollout_passes_no_gradient():
    attns = [attn.requires_grad_() for attn in attentions()]
    assert not attention_rollout(attns).requires_grad
    assert not attention_rollout_cls(attns).requires_grad


@pytest.mark.parametrize('function', [attention_rollout, attention_rollout_cls])
def test_rollout_of_nothing(function):
    with pytest.raises(ValueError, match='at least one layer'):
        function([])


@pytest.mark.parametrize(
    ('num_patches', 'ratio', 'num_local'),
    [(784, 0.1, 78), (128, 0.3, 38), (256, 0.3, 76), (210, 0.3, 63), (5, 0.1, 1), (10, 0.3, 3)],
)
def test_number_of_selected_patches(num_patches, ratio, num_local):
    scores = torch.rand(2, num_patches)
    idx = select_top_r(scores, ratio)
    assert idx.shape == (2, num_local)
    torch.testing.assert_close(scores.gather(1, idx), scores.topk(num_local).values)


def test_of_equal_scores_the_lower_index_comes_first():
    scores = torch.tensor([[0.0, 1.0, 1.0, 2.0, 1.0] * 20])
    idx = select_top_r(scores, 0.5)[0]
    best = range(3, 100, 5)
    good = [i for i in range(100) if i % 5 in (1, 2, 4)]
    assert idx.tolist() == [*best, *good[:30]]
    with pytest.raises(ValueError, match='ratio must be in'):
        select_top_r(scores, 1.5)


def cycle_length(partner, start=0):
    length, image = 1, int(partner[start])
    while image != start:
        length, image = length + 1, int(partner[image])
    return length


@pytest.mark.parametrize('batch', [2, 3, 8, 17])
@pytest.mark.parametrize('pairing', ['random', 'inter'])
def test_partners_form_one_cycle(batch, pairing):
    partner = pair_indices(batch, pairing, torch.arange(batch) // 2)
    assert sorted(partner.tolist()) == list(range(batch))
    assert cycle_length(partner) == batch


@pytest.mark.parametrize(
    'labels', [[0] * 4 + [1] * 4, [0, 1, 2, 0, 1, 0, 3, 0], [5, 5, 9, 2, 9, 5, 1], [3, 1, 4, 1, 5]]
)
def test_partners_of_other_labels(labels):
    labels = torch.tensor(labels)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        partner = pair_indices(len(labels), 'inter', labels, generator=generator)
        assert (labels[partner] != labels).all()
        assert cycle_length(partner) == len(labels)


def test_partners_of_other_labels_as_far_as_possible():
    labels = torch.tensor([0, 0, 0, 0, 0, 1])
    partner = pair_indices(6, 'inter', labels)
    assert cycle_length(partner) == 6
    assert (labels[partner] != labels).sum() == 2


def test_partners_of_the_same_label():
    labels = torch.tensor([3, 1, 3, 1, 3, 8, 1, 3])
    for _ in range(20):
        partner = pair_indices(8, 'intra', labels)
        assert (labels[partner] == labels).all()
        assert [cycle_length(partner, i) for i in range(8)] == [4, 3, 4, 3, 4, 1, 3, 4]


@pytest.mark.parametrize('pairing', ['random', 'inter', 'intra'])
def test_partners_are_drawn_anew(pairing):
    labels = torch.arange(32) // 4
    generator = torch.Generator().manual_seed(0)
    first = pair_indices(32, pairing, labels, generator=generator)
    second = pair_indices(32, pairing, labels, generator=generator)
    assert not torch.equal(first, second)
    again = pair_indices(32, pairing, labels, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first, again)


def test_pairing_checks_its_arguments():
    with pytest.raises(ValueError, match='at least 2 images'):
        pair_indices(1)
    with pytest.raises(ValueError, match='pairing must be'):
        pair_indices(4, 'all')
    with pytest.raises(ValueError, match='needs labels'):
        pair_indices(4, 'inter')


def test_glca_of_all_patches_is_the_self_attention_layer():
    source, block = layer(), GLCABlock(**LAYER)
    block.load_state_dict(source.state_dict())
    x = torch.randn(2, 7, 12)
    expected, _ = source(x)
    torch.testing.assert_close(block(x, torch.arange(6).repeat(2, 1)), expected)
    torch.testing.assert_close(block(x), expected[:, :1])
    order = torch.stack([torch.randperm(6) for _ in range(2)])
    rows = torch.cat((torch.zeros(2, 1, dtype=torch.long), order + 1), dim=1)
    torch.testing.assert_close(block(x, order), expected.take_along_dim(rows[..., None], dim=1))


def test_glca_goes_through_a_replaced_qkv():
    class Replaced(torch.nn.Linear):
        pass

    block = layer(GLCABlock)
    x, idx = torch.randn(2, 7, 12), torch.tensor([[5, 0], [1, 2]])
    expected = block(x, idx)
    qkv = Replaced(12, 36)
    qkv.load_state_dict(block.attn.qkv.state_dict())
    calls = []
    qkv.register_forward_hook(lambda *_: calls.append(1))
    block.attn.qkv = qkv
    torch.testing.assert_close(block(x, idx), expected)
    assert calls == [1]


def test_glca_starts_near_the_identity():
    block = GLCABlock(**LAYER)
    block.init_weights()
    assert all((p == 0).all() for n, p in block.named_parameters() if n.endswith('bias'))
    x = torch.randn(2, 7, 12)
    assert (block(x) - x[:, :1]).abs().max() < 0.1


def test_pairing_with_oneself_is_self_attention():
    module = layer()
    x = torch.randn(3, 7, 12)
    expected, _ = module(x)
    out, _ = pairwise_cross_attention(module, x, x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    stacked, _ = module(x.repeat(2, 1, 1), partner=torch.arange(3))
    torch.testing.assert_close(stacked, expected.repeat(2, 1, 1), rtol=0, atol=1e-5)


def test_pairwise_attention_mixes_self_and_cross_attention():
    """``o = alpha * SA + (1 - alpha) * cross``, alpha the weight on the image's own keys."""
    attn = layer().attn
    (q, k, v), (_, k2, v2) = (attn.project_qkv(torch.randn(2, 7, 12)) for _ in range(2))
    out, weights = attn.mix(q, torch.cat((k, k2), 2), torch.cat((v, v2), 2), need_weights=True)
    alpha = weights[..., :7].sum(-1, keepdim=True)
    assert ((alpha > 0) & (alpha < 1)).all()
    own, cross = (attn.mix(q, *kv)[0].unflatten(-1, (3, 4)).transpose(1, 2)
                  for kv in ((k, v), (k2, v2)))  # fmt: skip
    expected = (alpha * own + (1 - alpha) * cross).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('stream', ['pwca', 'sa'])
def test_pairwise_attention_is_local(stream):
    module = layer()
    tokens, pair = torch.randn(5, 7, 12), torch.randn(5, 7, 12)
    partner = torch.tensor([1, 2, 3, 4, 0])

    def run(tokens, pair):
        out, weights = module(
            torch.cat((tokens, pair)), partner=partner, partner_stream=stream, need_weights=True
        )
        assert weights.shape == (5, 3, 7, 7)
        return out.chunk(2)

    before, pair_before = run(tokens, pair)
    expected, _ = module(tokens)
    torch.testing.assert_close(before, expected)
    changed_tokens, changed_pair = tokens.clone(), pair.clone()
    (changed_pair if stream == 'pwca' else changed_tokens)[3] = torch.randn(7, 12)
    after, pair_after = run(changed_tokens, changed_pair)
    rows = (pair_after - pair_before).abs().amax(dim=(1, 2)) > 1e-6
    assert rows.tolist() == ([False, False, True, True, False] if stream == 'pwca'
                             else [False, False, True, False, False])  # fmt: skip
    rows = (after - before).abs().amax(dim=(1, 2)) > 1e-6
    assert rows.any() == (stream == 'sa')


def test_gradient_reaches_the_partner():
    module = layer()
    x, other = torch.randn(1, 7, 12), torch.randn(1, 7, 12, requires_grad=True)
    pairwise_cross_attention(module, x, other)[0].sum().backward()
    assert other.grad.abs().sum() > 0


def test_pairwise_attention_checks_its_arguments():
    with pytest.raises(ValueError, match='partner_stream must be'):
        layer()(torch.rand(4, 7, 12), partner=torch.tensor([1, 0]), partner_stream='both')
    with pytest.raises(ValueError, match='takes no attn_bias'):
        layer()(torch.rand(4, 7, 12), torch.zeros(7, 7), partner=torch.tensor([1, 0]))
    with pytest.raises(ValueError, match='need_weights must be'):
        layer()(torch.rand(4, 7, 12), need_weights='maps')


def test_uncertainty_weights_of_zero_halve_the_sum():
    losses = dict(sa=torch.tensor(2.0), glca=torch.tensor(3.0), pwca=torch.tensor(7.0))
    weighting = UncertaintyWeightedLoss(list(losses))
    total, w = weighting(losses)
    assert total.item() == pytest.approx(6.0)
    assert {name: value.item() for name, value in w.items()} == dict(sa=0, glca=0, pwca=0)
    total.backward()
    gradients = {name: w.grad.item() for name, w in weighting.log_vars.items()}
    assert gradients == dict(sa=-0.5, glca=-1, pwca=-3)


def test_uncertainty_weights_find_the_logarithm_of_the_loss():
    weighting = UncertaintyWeightedLoss(['a', 'b'])
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        weighting(dict(a=torch.tensor(3.0), b=torch.tensor(0.2)))[0].backward()
        optimizer.step()
    found = [w.item() for w in weighting.log_vars.values()]
    assert found == pytest.approx([math.log(3.0), math.log(0.2)], abs=1e-3)


def test_uncertainty_weights_stop_at_their_bound_and_come_back():
    weighting = UncertaintyWeightedLoss(['a'], init=-3.0, w_min=-1.0)
    total, w = weighting(dict(a=torch.tensor(0.01)))
    assert w['a'] == -1.0
    assert total.item() == pytest.approx(0.5 * (math.e * 0.01 - 1), rel=1e-5)
    total.backward()
    assert weighting.log_vars['a'].grad == 0
    total, _ = weighting(dict(a=torch.tensor(2.0)))
    total.backward()
    assert weighting.log_vars['a'].grad.item() == pytest.approx(0.5 * (1 - math.e * 2))


def test_uncertainty_weights_of_absent_tasks_get_no_gradient():
    weighting = UncertaintyWeightedLoss(['sa', 'glca', 'pwca'], init=[0.1, 0.2, 0.3])
    total, w = weighting(dict(glca=torch.tensor(2.0), sa=torch.tensor(1.0)))
    assert list(w) == ['sa', 'glca']
    expected = 0.5 * (math.exp(-0.1) + 0.1 + math.exp(-0.2) * 2 + 0.2)
    assert total.item() == pytest.approx(expected, rel=1e-6)
    total.backward()
    assert weighting.log_vars['pwca'].grad is None


def test_uncertainty_weights_are_applied_in_full_precision():
    """Losses of half precision and autocast do not round the total."""
    losses = dict(a=torch.tensor(3.0, dtype=torch.bfloat16), b=torch.tensor(0.1))
    weighting = UncertaintyWeightedLoss(['a', 'b'], init=[0.123, -0.456])
    expected = 0.5 * (math.exp(-0.123) * 3 + 0.123 + math.exp(0.456) * 0.1 - 0.456)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        total, _ = weighting(losses)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected, rel=1e-6)


def test_uncertainty_weighting_checks_its_arguments():
    with pytest.raises(ValueError, match='init has 2 values'):
        UncertaintyWeightedLoss(['a'], init=[0.0, 0.0])
    with pytest.raises(ValueError, match="tasks are \\['a'\\]"):
        UncertaintyWeightedLoss(['a'])(dict(b=torch.tensor(1.0)))
