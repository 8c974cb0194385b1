"""Rows of one computation spread over the processes of a group."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch.distributed as dist

Group: TypeAlias = dist.ProcessGroup | None


def share_of(count: int, group: Group) -> tuple[int, int]:
    """First row and the row after the last of this process' share; all rows without a group."""
    if group is None:
        return 0, count
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    return count * rank // size, count * (rank + 1) // size


def gather_rows(share: tuple[np.ndarray, ...], group: Group) -> tuple[np.ndarray, ...]:
    """The shares of all processes, one below the other, on every process.

    Args:
        share: Arrays whose rows are those that :func:`share_of` gave to this process.
        group: Without one, the arrays are returned as they are.
    """
    if group is None:
        return share
    shares: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(shares, share, group=group)
    return tuple(np.concatenate(parts) for parts in zip(*shares))
