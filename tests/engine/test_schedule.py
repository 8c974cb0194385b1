import pytest
import torch

from vitdown.engine.schedulers import WarmupCosineLR, warmup_cosine
from vitdown.registry import PARAM_SCHEDULERS


def test_values_named_in_the_recipe():
    schedule = dict(base=0.008, max_steps=120, warmup_steps=5, warmup_start=8e-5, minimum=1.6e-5)
    assert warmup_cosine(1, **schedule) == pytest.approx(0.001664)
    assert warmup_cosine(5, **schedule) == pytest.approx(0.007966, abs=5e-7)
    assert warmup_cosine(120, **schedule) == 1.6e-5


def test_falls_monotonically_after_the_warm_up():
    values = [warmup_cosine(t, 1.0, 30, 3, 0.01, 0.002) for t in range(1, 31)]
    assert values[0] < values[1] < values[2]
    assert all(a > b for a, b in zip(values[2:], values[3:]))


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def test_resumes_from_its_state():
    whole, first = (WarmupCosineLR(optimizer(), end=10, warmup_epochs=2) for _ in range(2))
    expected = []
    for epoch in range(9):
        for scheduler in [whole] + [first] * (epoch < 4):
            scheduler.optimizer.step()
            scheduler.step()
        expected.append(whole.optimizer.param_groups[0]['lr'])
    second = WarmupCosineLR(optimizer(), end=10, warmup_epochs=2)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    seen = []
    for _ in range(5):
        second.optimizer.step()
        second.step()
        seen.append(second.optimizer.param_groups[0]['lr'])
    assert seen == expected[4:]


def test_steps_of_iterations():
    """As epochs, with the schedule's end and warm-up in iterations."""
    config = dict(type='WarmupCosineLR', end=6, warmup_epochs=2, warmup_start_ratio=0.01)
    scheduler = PARAM_SCHEDULERS.build(
        dict(config, convert_to_iter_based=True),
        default_args=dict(optimizer=optimizer(), epoch_length=5),
    )
    assert not scheduler.by_epoch
    rates = []
    for _ in range(30):
        rates.append(scheduler.optimizer.param_groups[0]['lr'])
        scheduler.optimizer.step()
        scheduler.step()
    expected = [warmup_cosine(t, 0.1, 30, 10, 1e-3, 2e-4) for t in range(1, 31)]
    assert rates == pytest.approx(expected)


def test_warm_up_longer_than_training_is_refused():
    with pytest.raises(ValueError, match='warmup_epochs=5 must be below the 3 epochs'):
        WarmupCosineLR(optimizer(), end=3)
