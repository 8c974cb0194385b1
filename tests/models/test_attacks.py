"""Attacks: their constraints. Their numbers are checked against reference vectors in parity/."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitdown.models.attacks import deconvolution_attack, pgd_attack


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    images = torch.rand(6, 3, 8, 8)
    labels = torch.tensor([4, 0, 2, 2, 0, 4])
    return model, images, labels


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_pgd_raises_the_loss_within_the_ball(problem, norm):
    model, images, labels = problem
    eps = 0.03 if norm == 'linf' else 0.5

    def loss(x):
        return F.cross_entropy(model(x), labels)

    adversarial = pgd_attack(loss, images, eps, norm)
    delta = (adversarial - images).flatten(1)
    size = delta.abs().amax(1) if norm == 'linf' else delta.norm(dim=1)
    assert (size <= eps + 1e-6).all()
    assert (size > 0.5 * eps).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert loss(adversarial) > loss(images)
    assert not adversarial.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_steps_and_start_of_pgd(problem):
    _, images, _ = problem
    images = images / 2 + 0.25  # away from the limits
    seen = []

    def loss(x):
        seen.append(x.detach() - images)
        return x.sum()

    pgd_attack(loss, images, 0.1, steps=3, random_start=False)
    # One and a half times the radius in all, clamped
    for delta, size in zip(seen, (0, 0.05, 0.1)):
        assert torch.allclose(delta, torch.full_like(delta, size), atol=1e-6)
    pgd_attack(loss, images, 0.1, steps=3)
    start = seen[3]
    assert start.abs().max() <= 0.1 + 1e-6
    assert start.min() < -0.09
    assert start.max() > 0.09


def test_pgd_without_gradient_stays_finite(problem):
    _, images, _ = problem
    still = pgd_attack(lambda x: (x * 0).sum(), images, 0.5, 'l2')
    assert torch.allclose(still, images)


def test_random_start(problem):
    _, images, _ = problem
    started = pgd_attack(lambda x: x.sum(), images, 0.1, steps=0)
    assert not torch.equal(started, images)
    assert torch.equal(pgd_attack(lambda x: x.sum(), images, 0.1, 'l2', steps=0), images)
    assert torch.equal(
        pgd_attack(lambda x: x.sum(), images, 0.1, steps=0, random_start=False), images
    )


def test_wrong_settings_of_pgd(problem):
    _, images, _ = problem
    with pytest.raises(ValueError, match="norm must be 'linf' or 'l2', got 'l1'"):
        pgd_attack(torch.sum, images, 0.1, 'l1')
    with pytest.raises(ValueError, match='must not be negative'):
        pgd_attack(torch.sum, images, -0.1)


def test_deconvolution_raises_the_loss_of_the_classes_present(problem):
    model, images, labels = problem
    calls = []

    def loss(x, index):
        calls.append(labels[index].unique().tolist())
        return F.cross_entropy(model(x), labels[index])

    torch.manual_seed(1)
    start = deconvolution_attack(loss, images, labels, 3, steps=0)
    assert calls == []
    torch.manual_seed(1)
    out, kernels, biases = deconvolution_attack(loss, images, labels, 3, steps=5)
    assert calls == [[0], [2], [4]] * 5
    assert kernels.shape == (3, 1, 1, 3, 3)
    assert biases.shape == (3, 1)
    assert out.shape == images.shape
    assert torch.equal(out.amin(dim=(1, 2, 3)), torch.zeros(6))
    assert torch.equal(out.amax(dim=(1, 2, 3)), torch.ones(6))

    def total(attack):
        planes = [
            F.conv_transpose2d(images[i].unsqueeze(1), kernel, bias, padding=1).squeeze(1)
            for i, kernel, bias in zip(range(6), attack[1][[2, 0, 1, 1, 0, 2]],
                                       attack[2][[2, 0, 1, 1, 0, 2]])
        ]  # fmt: skip
        return F.cross_entropy(model(torch.stack(planes)), labels)

    assert total((out, kernels, biases)) > total(start)


def test_kernels_of_the_deconvolution(problem):
    _, images, labels = problem

    def loss(x, index):
        return (x * 0).sum()

    _, kernels, biases = deconvolution_attack(loss, images, labels, 3, steps=0)
    # Drawn for each class from U(-1/3, 1/3), as PyTorch initialises such a layer
    assert kernels.abs().max() <= 1 / 3
    assert (kernels.flatten(1).std(dim=1) > 0.05).all()
    assert not torch.equal(kernels[0], kernels[1])
    start = torch.full((3, 1, 1, 3, 3), 100.0), torch.full((3, 1), -100.0)
    _, kernels, biases = deconvolution_attack(loss, images, labels, 3, 1, parameters=start)
    assert torch.equal(kernels, torch.full_like(kernels, 5))
    assert torch.equal(biases, torch.full_like(biases, -5))

    # They are held within -5..5 before each step, not after the last one.
    seen = []

    def climb(x, index):
        seen.append(x.max().item())
        return 100 * x.sum()

    start = torch.zeros(3, 1, 1, 1, 1), torch.zeros(3, 1)
    _, kernels, _ = deconvolution_attack(
        climb, torch.ones(6, 3, 1, 1), labels, 1, 3, parameters=start
    )
    assert seen == [0] * 3 + [10] * 6
    assert (kernels > 5).all()


def test_constant_images_survive_the_deconvolution(problem):
    model, _, labels = problem
    out, _, _ = deconvolution_attack(
        lambda x, index: F.cross_entropy(model(x), labels[index]),
        torch.zeros(6, 3, 8, 8), labels, 3, steps=1,
    )  # fmt: skip
    assert torch.equal(out, torch.zeros(6, 3, 8, 8))


def test_wrong_settings_of_deconvolution(problem):
    _, images, labels = problem
    with pytest.raises(ValueError, match=r'kernel_size must be an odd integer, got 3\.0'):
        deconvolution_attack(None, torch.zeros(2, 3, 4, 4), torch.zeros(2), kernel_size=3.0)
    with pytest.raises(ValueError, match='kernel_size must be an odd integer, got 4'):
        deconvolution_attack(lambda x, i: x.sum(), images, labels, 4)
    with pytest.raises(ValueError, match='6 images need as many labels'):
        deconvolution_attack(lambda x, i: x.sum(), images, labels[:2])
