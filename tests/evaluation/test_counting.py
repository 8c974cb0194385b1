import pytest
import torch

from vitdown.evaluation.functional import counting


def random_problem(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(9, 70, generator=generator).round(decimals=1)
    scores[:, ::7] = -torch.inf
    rows = torch.randint(9, (25,), generator=generator).sort().values
    rows = rows[rows != 4]
    low = scores[rows, torch.randint(1, 7, (len(rows),), generator=generator)]
    return scores, rows, low


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('count', [counting._count_sorted, counting._count_compared])
def test_counts_for_cpu_and_other_devices(count, seed):
    scores, rows, low = random_problem(seed)
    thresholds = torch.stack([low, low + 0.3, low + 9], dim=1)
    counts = count(scores, rows, thresholds)
    wanted = (scores[rows][:, None] >= thresholds[..., None]).sum(dim=2)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, wanted)


@pytest.mark.parametrize('count', [counting._count_sorted, counting._count_compared])
def test_counts_nothing(count):
    empty = torch.empty(0, dtype=torch.int64)
    assert count(torch.zeros(3, 5), empty, torch.empty(0, 2)).shape == (0, 2)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('find', [counting._find_by_row, counting._find_by_block])
def test_finds_for_cpu_and_other_devices(find, seed):
    scores, rows, low = random_problem(seed)
    interval, column = find(scores, rows, low, low + 0.25)
    wanted = [
        (i, j)
        for i, row in enumerate(rows.tolist())
        for j in range(scores.shape[1])
        if low[i] <= scores[row, j] < low[i] + 0.25
    ]
    assert list(zip(interval.tolist(), column.tolist())) == wanted
