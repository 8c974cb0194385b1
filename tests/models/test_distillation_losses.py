import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdown.models.losses import DKDLoss, KDLoss, NKDLoss, USKDLoss, ViTKDLoss
from vitdown.models.losses.distillation import dkd_loss, kd_loss, nkd_loss, nkd_parts
from vitdown.models.losses.uskd import (
    rank_score,
    soft_target,
    top_targets,
    uskd_loss,
    uskd_parts,
    zipf_labels,
    zipf_row,
)


def batch(num=6, classes=9, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    zs, zt = (scale * torch.randn(2, num, classes, generator=generator)).double()
    return zs.requires_grad_(), zt, torch.randint(classes, (num,), generator=generator)


def gradient(loss, zs):
    return torch.autograd.grad(loss, zs)[0]


@settings(max_examples=20, deadline=None)
@given(
    st.integers(2, 12), st.integers(1, 7), st.floats(0.5, 5), st.floats(0, 5), st.integers(0, 99)
)
def test_gradient_of_nkd_is_the_formulas(classes, num, temperature, gamma, seed):
    zs, zt, target = batch(num, classes, seed=seed)
    found = gradient(nkd_loss(zs, zt, target, temperature, gamma), zs)
    onehot = F.one_hot(target, classes)
    q_target = (zt.softmax(1) * onehot).sum(1, keepdim=True)
    expected = q_target * (zs.softmax(1) - onehot)
    inf = onehot.double().masked_fill(onehot.bool(), float('-inf'))
    others = (zs / temperature + inf).softmax(1) - (zt / temperature + inf).softmax(1)
    expected = (expected + gamma * temperature * others) / num
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-9)


def test_nkd_of_two_classes_has_no_others():
    zs, zt, target = batch(classes=2)
    assert nkd_parts(zs, zt, target)[1].item() == 0
    with pytest.raises(ValueError, match='at least two classes'):
        nkd_loss(zs[:, :1], zt[:, :1], target)


def test_nkd_and_dkd_agree_on_the_others():
    """NKD's cross-entropy less the teacher's entropy is DKD's divergence."""
    zs, zt, target = batch()
    temperature = 2.0
    own = nkd_parts(zt, zt, target, temperature)[1]
    nckd = dkd_loss(zs, zt, target, temperature, alpha=0.0, beta=1.0)
    difference = nkd_parts(zs, zt, target, temperature)[1] - own
    torch.testing.assert_close(nckd, temperature**2 * difference)
    torch.testing.assert_close(
        gradient(nkd_parts(zs, zt, target, temperature)[1] * temperature**2, zs),
        gradient(dkd_loss(zs, zt, target, temperature, alpha=0.0, beta=1.0), zs),
    )


LOSSES = {
    'nkd': lambda zs, zt, y: nkd_loss(zs, zt, y, 2.0, 1.5),
    'kd': lambda zs, zt, y: kd_loss(zs, zt),
    'dkd': lambda zs, zt, y: dkd_loss(zs, zt, y),
    'uskd': lambda zs, zt, y: uskd_loss(zs, zt, y),
}


@pytest.mark.parametrize('name', LOSSES)
def test_invariants(name):
    loss = LOSSES[name]
    zs, zt, target = batch()
    value = loss(zs, zt, target)
    torch.testing.assert_close(loss(zs + torch.rand(6, 1), zt, target), value)
    permutation = torch.randperm(9)
    inverse = permutation.argsort()
    torch.testing.assert_close(loss(zs[:, permutation], zt[:, permutation], inverse[target]), value)
    for dtype in (torch.float16, torch.bfloat16):
        half = loss(zs.to(dtype), zt.to(dtype), target)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half.double(), value, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize('name', LOSSES)
def test_extreme_logits_stay_finite(name):
    zs, zt, target = batch(scale=1e4)
    zs = zs.float().detach().requires_grad_()
    loss = LOSSES[name](zs, zt.float(), target)
    assert loss.isfinite()
    assert gradient(loss, zs).isfinite().all()


@pytest.mark.parametrize('name', ['nkd', 'kd', 'dkd'])
def test_teacher_gets_no_gradient(name):
    zs, zt, target = batch()
    zt.requires_grad_()
    assert torch.autograd.grad(LOSSES[name](zs, zt, target), zt, allow_unused=True)[0] is None
    with pytest.raises(ValueError, match=r'\(6, 9\) from the student and \(6, 8\) from'):
        LOSSES[name](zs, zt[:, :8], target)


def test_zipf_labels_follow_the_ranks():
    score = torch.randn(5, 8)
    labels = torch.randint(8, (5, 1))
    targets = torch.zeros(5, 8, dtype=torch.bool).scatter(1, labels, True)
    rest = zipf_labels(score, targets, zipf_row(8))
    torch.testing.assert_close(rest.sum(1), torch.ones(5))
    assert (rest[targets] == 0).all()
    for row, scores, mask in zip(rest, score, targets):
        order = scores[~mask].argsort(descending=True)
        assert (row[~mask][order].diff() < 0).all()
        place = scores.argsort(descending=True).argsort()[mask]
        left = [1 / (p + 1) for p in range(8) if p != place]
        torch.testing.assert_close(row[~mask][order], torch.tensor(left) / sum(left))


def test_soft_targets_keep_their_mean():
    zs, _, target = batch()
    labels, values = top_targets(target)
    soft = soft_target(zs, labels, values)
    assert soft.mean().item() == pytest.approx(1)
    mixed = 0.7 * F.one_hot(target, 9) + 0.3 * F.one_hot(target.flip(0), 9)
    labels, values = top_targets(mixed)
    torch.testing.assert_close(values.sum(1), torch.ones(6))
    same = target == target.flip(0)
    assert (soft_target(zs, labels, values)[same, 1] == 0).all()


def test_rank_modes_differ_where_the_formulas_do():
    zs, weak, target = batch()
    targets = F.one_hot(target, 9).bool()
    by_probability = rank_score(zs, weak, targets, 'prob')
    by_log = rank_score(zs, weak, targets, 'log_prob')
    p, w = zs.softmax(1), weak.softmax(1)
    expected = p / (1 - p[targets][:, None] + 1e-6) + w / (1 - w[targets][:, None] + 1e-6)
    torch.testing.assert_close(by_probability, expected)
    assert not torch.allclose(by_log, by_probability)


def test_targets_without_score_are_left_alone():
    """Both images of a mix had one class: as if it were not mixed, unless the release is asked."""
    zs, weak, target = batch()
    scores = F.one_hot(target, 9).double()
    values = [uskd_parts(zs, weak, y)[1] for y in (target, scores)]
    torch.testing.assert_close(*values)
    assert not torch.allclose(uskd_parts(zs, weak, scores, exclude_zero_targets=True)[1], values[0])


def test_gradients_of_uskd_go_where_they_should():
    zs, weak, target = batch()
    weak.requires_grad_()
    mu = 0.3
    loss = uskd_loss(zs, weak, target, mu=mu)
    smoothed = 0.9 * F.one_hot(target, 9) + 0.1 / 9
    expected = mu * F.cross_entropy(weak, smoothed)
    torch.testing.assert_close(gradient(loss, weak), gradient(expected, weak))
    assert uskd_loss(zs, weak, target, alpha=0, beta=0, mu=0) == 0


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: NKDLoss(temperature=0), 'temperature'),
        (lambda: DKDLoss(temperature=-1), 'temperature'),
        (lambda: KDLoss(alpha=2), 'alpha'),
        (lambda: USKDLoss(4, rank_mode='rank'), 'rank_mode'),
        (lambda: USKDLoss(4, num_classes=2), 'num_classes'),
        (lambda: ViTKDLoss(4, 4, mask_ratio=0), 'mask_ratio'),
        (lambda: ViTKDLoss(4, '8'), 'teacher_dims'),
        (lambda: NKDLoss(gamma=-1), 'gamma'),
        (lambda: NKDLoss(loss_weight=None), 'loss_weight'),
        (lambda: KDLoss(temperature='a'), 'temperature'),
        (lambda: DKDLoss(beta=float('nan')), 'beta'),
        (lambda: USKDLoss(4, alpha=True), 'alpha'),
        (lambda: USKDLoss(4, exclude_zero_targets='no'), 'exclude_zero_targets'),
        (lambda: USKDLoss(-2), 'in_channels'),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


WEIGHTED = {
    'nkd': (NKDLoss, lambda zs, zt, y: (zs, zt, y)),
    'kd': (KDLoss, lambda zs, zt, y: (zs, zt)),
    'dkd': (DKDLoss, lambda zs, zt, y: (zs, zt, y)),
    'uskd': (lambda **kwargs: USKDLoss(9, 9, **kwargs), lambda zs, zt, y: (zt.float(), zs, y)),
    'vitkd': (
        lambda **kwargs: ViTKDLoss(6, 6, **kwargs),
        lambda zs, zt, y: 2 * (torch.rand(4, 2, 9, 6), torch.rand(4, 9, 6)),
    ),
}


@pytest.mark.parametrize('name', WEIGHTED)
def test_weights_of_the_losses_count(name):
    make, arguments = WEIGHTED[name]
    values = []
    for loss_weight in (1.0, 3.0):
        torch.manual_seed(0)
        values.append(make(loss_weight=loss_weight)(*arguments(*batch())))
    assert values[0] > 0
    torch.testing.assert_close(values[1], 3 * values[0])


def test_vitkd_wants_one_square_grid():
    loss = ViTKDLoss(4, 4)
    low = torch.rand(2, 2, 6, 4)
    with pytest.raises(ValueError, match='one square grid'):
        loss(low, low[:, 0], low, low[:, 0])
