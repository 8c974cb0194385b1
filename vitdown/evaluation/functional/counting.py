"""Counting the scores of a row that reach a threshold: what a rank is made of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch


def count_at_least(
    scores: torch.Tensor, rows: torch.Tensor, thresholds: torch.Tensor
) -> torch.Tensor:
    """Number of scores of a row that are at least a threshold.

    Args:
        scores: (B, G).
        rows: (n,) row of each threshold, ascending.
        thresholds: (n, T) in the type of the scores.

    Returns:
        int64 counts of shape (n, T).
    """
    if scores.device.type == 'cpu':
        return _count_sorted(scores, rows, thresholds)
    return _count_compared(scores, rows, thresholds)


def find_between(
    scores: torch.Tensor, rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns with ``low <= score < high``.

    Args:
        scores: (B, G).
        rows: (n,) row of each interval.
        low: (n,).
        high: (n,).

    Returns:
        Two int64 tensors (m,): number of the interval and column of each score found.
    """
    on_cpu = scores.device.type == 'cpu'
    find = _find_by_row if on_cpu else _find_by_block
    return find(scores, rows, low, high)


def _find_by_row(
    scores: torch.Tensor, rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """NumPy, which costs least for a single row."""
    table = scores.numpy()
    columns = [
        np.flatnonzero((table[row] >= begin) & (table[row] < end))
        for row, begin, end in zip(rows.numpy(), low.numpy(), high.numpy())
    ]
    intervals = np.repeat(np.arange(len(columns)), [len(found) for found in columns])
    return torch.from_numpy(intervals), torch.from_numpy(np.concatenate(columns))


def _find_by_block(
    scores: torch.Tensor, rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Many rows in one step, which costs least where every step has to be waited for."""
    step = max(1, scores.numel() // (8 * scores.shape[1]))
    found = []
    for begin in range(0, len(rows), step):
        part = slice(begin, begin + step)
        table = scores[rows[part]]
        pairs = ((table >= low[part, None]) & (table < high[part, None])).nonzero()
        pairs[:, 0] += begin
        found.append(pairs)
    return torch.cat(found).unbind(dim=1)


def _count_sorted(
    scores: torch.Tensor, rows: torch.Tensor, thresholds: torch.Tensor
) -> torch.Tensor:
    """Sort the upper part of each row, then search: the fastest way on a CPU.

    NumPy sorts floats with vector instructions, several times faster than comparing the row with
    each threshold. Rows are shared among threads; NumPy releases the interpreter for them.
    """
    table = scores.numpy()
    values = thresholds.numpy()
    distinct, first = np.unique(rows.numpy(), return_index=True)
    last = np.append(first[1:], len(rows))
    counts = np.zeros(values.shape, dtype=np.int64)

    def count(part: slice) -> None:
        for row, begin, end in zip(distinct[part], first[part], last[part]):
            wanted = values[begin:end]
            above = table[row] >= wanted.min()
            # Picking pays only where little is picked.
            few = 4 * np.count_nonzero(above) < len(above)
            ordered = np.sort(table[row][above] if few else table[row])
            counts[begin:end] = len(ordered) - np.searchsorted(ordered, wanted)

    threads = min(torch.get_num_threads(), len(distinct))
    if threads <= 1:
        count(slice(None))
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(count, [slice(i, None, threads) for i in range(threads)]))
    return torch.from_numpy(counts)


def _count_compared(
    scores: torch.Tensor, rows: torch.Tensor, thresholds: torch.Tensor
) -> torch.Tensor:
    """Compare all rows at once with their first threshold, then with the second, and so on."""
    position = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
    counts = torch.zeros(thresholds.shape, dtype=torch.int64, device=scores.device)
    for i in range(int(position.max()) + 1 if len(rows) else 0):
        of_turn = position == i
        for column in range(thresholds.shape[1]):
            limit = scores.new_full((len(scores), 1), torch.inf)
            limit[rows[of_turn], 0] = thresholds[of_turn, column]
            counts[of_turn, column] = (scores >= limit).sum(dim=1)[rows[of_turn]]
    return counts
