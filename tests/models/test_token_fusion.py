"""Matching, fusing and the policies on their own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plain_mctf import PlainMCTF
from vitdown.models.layers import TransformerEncoderLayer
from vitdown.models.token_fusion import (
    MCTF,
    Assignment,
    FusionState,
    ToMe,
    attend_fused,
    cosine_scores,
    fuse_attention,
    fuse_tokens,
    match_bipartite,
    multi_criteria_scores,
    resolve_count,
)
from vitdown.models.token_fusion.matching import rank_scores


def tokens(batch=2, num=21, dims=12, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, num, dims, generator=generator, dtype=dtype)


def attention(batch=2, heads=3, num=21, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, num, num, generator=generator, dtype=dtype).softmax(-1)


def block(seed=0, dims=12, dtype=torch.float64):
    torch.manual_seed(seed)
    layer = TransformerEncoderLayer(dims, 3, 2 * dims)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer.to(dtype)


def some_state(num=21, total=40, batch=2):
    """Sizes and sources as after earlier fusions."""
    source = torch.cat((torch.arange(num), torch.arange(total - num) % (num - 1) + 1))
    size = torch.bincount(source, minlength=num).float()
    return FusionState(size=size.expand(batch, -1), source=source.expand(batch, -1))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_slot_is_taken_and_protected_tokens_stay(data):
    protected = data.draw(st.integers(0, 3))
    num = data.draw(st.integers(protected + 2, 24))
    r = data.draw(st.integers(0, (num - protected) // 2))
    bidirectional = data.draw(st.booleans())
    sort_kept = data.draw(st.booleans())
    x = tokens(2, num, seed=data.draw(st.integers(0, 99)))
    scores = cosine_scores(x, protected)
    assignment = match_bipartite(scores, r, protected, bidirectional, sort_kept)
    assert assignment.num_slots == num - r
    for slots in assignment.slots:
        assert set(slots.tolist()) == set(range(num - r))
        assert slots[:protected].tolist() == list(range(protected))
        assert (slots[protected:] >= protected).all()
    sizes = assignment.sum(torch.ones(2, num))
    assert (sizes.sum(dim=1) == num).all()
    assert (sizes[:, :protected] == 1).all()
    fused = fuse_tokens(x, assignment, assignment.shares(torch.rand(2, num) + 0.1))
    assert torch.equal(fused[:, :protected], x[:, :protected])
    alone = assignment.spread(sizes) == 1
    assert torch.equal(assignment.spread(fused)[alone], x[alone])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_ranks_are_those_of_a_stable_sort(values):
    scores = torch.tensor([values], dtype=torch.float32)
    order = scores.argsort(dim=1, descending=True, stable=True)
    assert rank_scores(scores).tolist() == order.argsort(dim=1).tolist()


def test_ranks_are_a_permutation_whatever_the_scores():
    scores = torch.tensor([[math.nan, math.inf, -math.inf, 1.0, math.nan]])
    assert rank_scores(scores).tolist() == [[2, 0, 3, 1, 4]]


def test_chains_end_in_one_token():
    # 0 goes to 1 (place 1, even set first), then 1 goes to 2 and takes it along.
    scores = torch.tensor([[[0.9, 0.1], [0.8, 0.2]]])
    assignment = match_bipartite(scores, 2, num_protected=0, bidirectional=True)
    assert assignment.slots.tolist() == [[0, 0, 0, 1]]


def test_fused_attention_is_never_needed():
    x, attn = tokens(), attention().requires_grad_()
    value = tokens(2 * 3, 21 - 8, 4, seed=3).view(2, 3, 13, 4).requires_grad_()
    assignment = match_bipartite(cosine_scores(x), 8, bidirectional=True)
    shares = assignment.shares(torch.rand(2, 21, dtype=torch.float64) + 0.1)
    cotangent = tokens(2, 13, 12, seed=4)
    results = []
    for form in ('plain', 'fast'):
        if form == 'plain':
            fused = fuse_attention(attn, assignment, shares)
            torch.testing.assert_close(fused.sum(-1), torch.ones_like(fused.sum(-1)))
            out = (fused @ value).transpose(1, 2).flatten(2)
        else:
            out = attend_fused([attn], value, assignment, shares)
        results.append((out, *torch.autograd.grad((out * cotangent).sum(), (attn, value))))
    for plain, fast in zip(*results):
        torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize('state', [FusionState(), some_state()], ids=['first', 'later'])
@pytest.mark.parametrize('bidirectional', [True, False])
def test_block_equals_the_step_by_step_form(state, bidirectional):
    layer, x = block(), tokens().requires_grad_()
    results = []
    for policy in (MCTF, PlainMCTF):
        policy = policy(num_layers=1, layers=[0], r=6, bidirectional=bidirectional)
        out, after, _ = policy(layer, 0, x, state)
        gradients = torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])
        results.append((out, after.size, after.source, *gradients))
    for fast, plain in zip(*results):
        torch.testing.assert_close(fast, plain, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('pooling', ['size', 'info_size', 'mean'])
def test_explicit_map_changes_nothing(pooling):
    layer, x, state = block(), tokens(), some_state()
    outs = [
        MCTF(1, 6, [0], pooling=pooling, explicit_map=explicit)(layer, 0, x, state)[0]
        for explicit in (False, True)
    ]
    torch.testing.assert_close(*outs, rtol=0, atol=1e-12)


def test_attention_dropout_falls_on_the_fused_map():
    layer, x = block(), tokens()
    policy = MCTF(1, 6, [0])
    expected, _, _ = policy(layer, 0, x, FusionState())
    layer.attn.attn_drop = 0.5
    torch.manual_seed(0)
    dropped, _, _ = policy(layer, 0, x, FusionState())
    assert not torch.allclose(dropped, expected)
    policy.eval()
    torch.testing.assert_close(policy(layer, 0, x, FusionState())[0], expected)


def test_similarity_alone_in_one_direction_chooses_the_pairs_of_tome():
    x, received = tokens(), torch.rand(2, 21)
    scores = multi_criteria_scores(x, received, None, 1.0, 0.0, 0.0)
    ours, tome = match_bipartite(scores, 7), match_bipartite(cosine_scores(x), 7)
    assert torch.equal(ours.slots, tome.slots)


def test_small_and_uninformative_tokens_fuse_first():
    received = torch.rand(2, 21, dtype=torch.float64) + 0.01
    mean = {}
    for tau_info in (0.0, 1.0):
        scores = multi_criteria_scores(tokens(), received, None, 1.0, tau_info, 0.0)
        assignment = match_bipartite(scores, 8, bidirectional=True)
        fused = assignment.spread(assignment.sum(torch.ones(2, 21))) > 1
        mean[tau_info] = received[fused].mean()
    assert mean[1.0] < mean[0.0]

    largest = {}
    for tau_size in (0.0, 1.0):
        policy = MCTF(4, 12, range(4), tau_info=0.0, tau_size=tau_size, min_tokens=4)
        x, state = tokens(4, 65, seed=5), FusionState()
        for i in range(4):
            x, state, _ = policy(block(i), i, x, state)
        largest[tau_size] = state.size[:, 1:].amax(dim=1).sum()
    assert largest[1.0] < largest[0.0]


def test_degenerate_tokens_give_finite_results():
    x = torch.zeros(2, 20, 12)
    x[:, ::3] = 1.0
    received = torch.zeros(2, 20)
    received[:, 0] = 1.0
    scores = multi_criteria_scores(x, received, None, 2.0, 20.0, 0.0)
    assert scores.isfinite().all()
    opposite = torch.cat((x + 1, -x - 1), dim=1).half()
    scores = multi_criteria_scores(opposite, torch.ones(2, 40), None, 3.0)
    assert scores.isfinite().all()
    assert scores.dtype == torch.float32


def test_opposite_tokens_whose_cosine_rounds_below_minus_one():
    x = tokens(num=400, dtype=torch.float32)
    opposite = torch.stack((x, -x), dim=2).flatten(1, 2)
    assert cosine_scores(opposite, num_protected=0).min() < -1
    scores = multi_criteria_scores(opposite, torch.ones(2, 800), None, 2.0, num_protected=0)
    assert scores.isfinite().all()


def test_matching_does_not_see_autocast():
    x, received = tokens(dtype=torch.float32), torch.rand(2, 21)
    expected = multi_criteria_scores(x, received)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(multi_criteria_scores(x, received), expected)


@pytest.mark.parametrize('attention_mode', ['previous', 'one_step_ahead', 'exact'])
def test_mixed_precision_trains(attention_mode):
    layer, x = block(dtype=torch.float32), tokens(dtype=torch.float32).requires_grad_()
    policy = MCTF(1, 6, [0], attention=attention_mode)
    with torch.autocast('cpu', torch.bfloat16):
        out, state, _ = policy(layer, 0, x, some_state())
    out.float().square().mean().backward()
    assert state.size.dtype == torch.float32
    assert x.grad.isfinite().all()
    assert layer.attn.qkv.weight.grad.abs().sum() > 0
    expected = policy(layer, 0, x, some_state())[0]
    assert (out - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_fused_tokens_of_equal_images_do_not_depend_on_the_batch():
    layer, x = block(), tokens(4)
    order = torch.tensor([2, 0, 3, 1])
    for policy in (MCTF(1, 6, [0]), ToMe(6, 1)):
        out, state, _ = policy(layer, 0, x, FusionState())
        mixed, mixed_state, _ = policy(layer, 0, x[order], FusionState())
        torch.testing.assert_close(mixed, out[order])
        assert torch.equal(mixed_state.source, state.source[order])
        alone, _, _ = policy(layer, 0, x[1:2], FusionState())
        torch.testing.assert_close(alone[0], out[1])


def test_schedules():
    assert MCTF(12).schedule(197) == [197, 181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21]
    assert MCTF(12, r=18).schedule(197)[-3:] == [35, 18, 10]
    assert MCTF(12, r=20).schedule(197)[-4:] == [37, 19, 10, 10]
    assert MCTF(12, r=0.35, layers=[3, 6, 9]).schedule(197)[3::3] == [129, 85, 56]
    assert MCTF(12).schedule(197, r=0) == [197] * 12
    assert ToMe(16, 12).schedule(197)[-2:] == [21, 11]
    assert ToMe((8, -1.0), 3).r_per_layer == [16, 8, 0]
    assert ToMe([6, 0], 4).r_per_layer == [6, 0, 0, 0]
    # Another r for a pass leaves blocks alone that are off.
    assert ToMe([6, 0, 9], 3).schedule(80, r=4) == [76, 76, 72]
    assert ToMe((8, -1.0), 3).schedule(80, r=4) == [76, 72, 72]
    assert ToMe([16], 4).schedule(197, r=7) == [190] * 4
    assert ToMe(0, 2).schedule(40, r=4) == [36, 32]
    policy = MCTF(2, r=6, r_eval=2)
    assert policy.train().schedule(40) == [40, 34]
    assert policy.eval().schedule(40) == [40, 38]
    assert [resolve_count(n, 16, min_tokens=10) for n in (1, 5, 10, 12, 40)] == [0, 0, 0, 2, 16]
    # A fraction is held up by min_tokens where there are no more, not where it goes below.
    assert [resolve_count(n, 0.5, min_tokens=10) for n in (10, 11, 17, 40)] == [0, 5, 8, 19]


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: MCTF(12, r=-1), 'r must be a number of tokens'),
        (lambda: MCTF(12, r=1.5), 'r must be a number of tokens .* got 1.5'),
        (lambda: MCTF(12, r=True), 'r must be a number of tokens'),
        (lambda: MCTF(12, r='16'), "got '16'"),
        (lambda: MCTF(12, r=math.inf), 'r must be a number of tokens .* got inf'),
        (lambda: MCTF(12, r_eval=-2), 'r_eval must be'),
        (lambda: MCTF(12, bidirectional='false'), "bidirectional must be True or .* got 'false'"),
        (lambda: MCTF(12, explicit_map=1), 'explicit_map must be True or False, got 1'),
        (lambda: MCTF(12, prop_attn='no'), "prop_attn must be True or False, got 'no'"),
        (lambda: ToMe(4, 12, prop_attn='no'), "prop_attn must be True or False, got 'no'"),
        (lambda: MCTF(12, layers=3), r'layers must be a list .* e.g. \[3, 6, 9\], got 3'),
        (lambda: MCTF(12, layers='3'), "layers must be a list .* got '3'"),
        (lambda: MCTF(12, layers=[3, 6.0]), r'layers must be a list .* got \[3, 6.0\]'),
        (lambda: MCTF(12, layers=[3, 12]), r'layers \[12\] do not exist, the backbone has 12'),
        (lambda: MCTF(12, pooling='avg'), "pooling must be one of .*, got 'avg'"),
        (lambda: MCTF(12, attention=1), 'attention must be one of'),
        (lambda: MCTF(12, tau_info=-1.0), 'tau_info must be a number of at least 0'),
        (lambda: MCTF(12, tau_sim='x'), "tau_sim must be a number of at least 0, got 'x'"),
        (lambda: MCTF(12, min_tokens='x'), "min_tokens must be an integer of at least 0, got 'x'"),
        (lambda: MCTF(12, min_tokens=-1), 'min_tokens must be an integer of at least 0'),
        (lambda: ToMe([4] * 13, 12), 'r has 13 entries, the backbone 12 layers'),
        (lambda: ToMe((8, 2.0), 12), 'inflect in'),
        (lambda: ToMe((8, 'up'), 12), r"\(r, inflect\) with a number inflect .* got \(8, 'up'\)"),
        (lambda: ToMe([8, 1.0], 12), r'\(r, inflect\) is a tuple: r=\(8, 1.0\)'),
        (lambda: ToMe([8, 4, -1], 12), r'r\[2\] must be a number of tokens .* got -1'),
        (lambda: ToMe((0.3, 0.0), 12), r'takes a number of tokens, not the fraction 0.3'),
        (lambda: ToMe((0.9, 0.0), 12), r'takes a number of tokens, not the fraction 0.9'),
        (lambda: ToMe('16', 12), "r must be a number of tokens .* got '16'"),
        (lambda: ToMe(-4, 12), 'r must be a number of tokens'),
        (lambda: match_bipartite(torch.rand(1, 4, 4), 5), 'at most half can go, not r=5'),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_pair_wise_attention_refuses_maps_to_be_fused():
    layer, policy, partner = block(), MCTF(1, 6, [0]), torch.tensor([1, 0])
    layer.attn.attn_drop = 0.5
    with pytest.raises(ValueError, match="attention dropout .* can't be combined with pair-wise"):
        policy(layer, 0, tokens(4), FusionState(), partner=partner)
    # In evaluation nothing is dropped, and no map fused.
    policy.eval()(layer.eval(), 0, tokens(4), FusionState(), partner=partner)
    policy = MCTF(1, 6, [0], pooling='max')
    with pytest.raises(ValueError, match="pooling='max'.* can't be combined with pair-wise"):
        policy(block(), 0, tokens(4), FusionState(), partner=partner)
    with pytest.raises(ValueError, match="partner_stream must be 'pwca' or 'sa'"):
        policy(block(), 0, tokens(4), FusionState(), partner_stream='both')
    with pytest.raises(ValueError, match='need_weights must be'):
        policy(block(), 0, tokens(4), FusionState(), need_weights='map')


@pytest.mark.parametrize('partner_stream', ['pwca', 'sa'])
@pytest.mark.parametrize('fused_before', [False, True])
def test_pair_wise_stream_sees_the_fused_tokens_of_both_images(partner_stream, fused_before):
    layer, x, partner = block(), tokens(6), torch.tensor([1, 2, 0])
    policy = MCTF(1, 6, [0])
    before = unequal_state() if fused_before else FusionState()
    first = before.narrow(3)
    out, state, _ = policy(layer, 0, x, before, False, partner, partner_stream)
    alone, alone_state, _ = policy(layer, 0, x[:3], first)
    torch.testing.assert_close(out[:3], alone)
    assert torch.equal(state.source[:3], alone_state.source)

    # The other stream, with its attention map fused step by step.
    attn, pair = layer.attn, x[3:]
    sizes = before.sizes(x).double()
    query, key = attn.project_qk(layer.ln1(x))
    met = slice(3, 6) if partner_stream == 'pwca' else slice(0, 3)
    logits = attn.scale * query[3:] @ torch.cat((key[3:], key[met][partner]), dim=2).mT
    logits += torch.cat((sizes[3:], sizes[met][partner]), dim=1).log()[:, None, None]
    weights = logits.softmax(-1)
    received = weights[..., :21].mean(dim=(1, 2))
    own = policy.match(pair, received, before.size[3:] if fused_before else None, 6)
    sources = own.slots.gather(1, before.source[3:]) if fused_before else own.slots
    assert torch.equal(sources, state.source[3:])
    shares = policy.shares(own, received, sizes[3:])
    fused = fuse_tokens(pair, own, shares)
    first_fused, first_own = fuse_first(policy, layer, x[:3], first)
    value = attn.project_v(layer.ln1(fused))
    if partner_stream == 'pwca':
        other_value, slots = value[partner], own.slots[partner]
    else:
        other_value = attn.project_v(layer.ln1(first_fused))[partner]
        slots = first_own.slots[partner]
    one_hot = torch.nn.functional.one_hot
    keys = torch.cat(
        (
            weights[..., :21] @ one_hot(own.slots, 15).double()[:, None],
            weights[..., 21:] @ one_hot(slots, 15).double()[:, None],
        ),
        dim=-1,
    )
    average = (one_hot(own.slots, 15).double() * shares[..., None]).transpose(1, 2)[:, None]
    mixed = (average @ keys) @ torch.cat((value, other_value), dim=2)
    expected = fused + attn.project_out(mixed.transpose(1, 2).flatten(2))
    expected = layer.ffn(layer.ln2(expected), identity=expected)
    torch.testing.assert_close(out[3:], expected, rtol=1e-6, atol=1e-6)


def unequal_state():
    """State of two streams of three images with 21 tokens of 40, every image fused otherwise."""
    shifts = torch.tensor([0, 3, 7, 1, 9, 12])[:, None]
    source = torch.cat((torch.arange(21), torch.arange(19) // 2 + 1)).expand(6, -1)
    source = torch.where(source == 0, 0, (source + shifts) % 20 + 1)
    size = torch.zeros(6, 21).scatter_add(1, source, torch.ones(6, 40))
    return FusionState(size=size, source=source)


def fuse_first(policy, layer, x, state):
    """Fused tokens of a plain stream, before the block goes on with them, and who goes where."""
    sizes = state.sizes(x).double()
    query, key = layer.attn.project_qk(layer.ln1(x))
    logits = layer.attn.scale * query @ key.mT + sizes.log()[:, None, None]
    received = logits.softmax(-1).mean(dim=(1, 2))
    assignment = policy.match(x, received, state.size, 6)
    return fuse_tokens(x, assignment, policy.shares(assignment, received, sizes)), assignment


@pytest.mark.parametrize('partner_stream', ['pwca', 'sa'])
def test_a_partners_token_counts_as_often_as_its_size(partner_stream):
    """Two streams of fused tokens give what those of their copies give."""
    layer, x, partner, state = block(), tokens(6), torch.tensor([1, 2, 0]), unequal_state()
    out, _, _ = ToMe(0, 1)(layer, 0, x, state, False, partner, partner_stream)
    copies, _ = layer(state.spread(x), None, False, partner, partner_stream)
    torch.testing.assert_close(state.spread(out), copies, rtol=1e-6, atol=1e-6)


def test_tokens_without_attention_count_alike():
    """Low-bit attention can give tokens exactly nothing."""
    policy = MCTF(num_layers=1)
    slots = torch.tensor([[0, 1, 1, 2]])
    received = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    shares = policy.shares(Assignment(slots, 3), received, torch.ones(1, 4))
    torch.testing.assert_close(shares, torch.tensor([[1.0, 0.5, 0.5, 1.0]]))
    shares = policy.shares(Assignment(slots, 3), torch.zeros(1, 4), torch.ones(1, 4))
    torch.testing.assert_close(shares, torch.tensor([[1.0, 0.5, 0.5, 1.0]]))
