"""Bipartite soft matching of tokens, by one criterion (ToMe) or several (MCTF).

Tokens at even places form one set, those at odd places the other; the first ``num_protected``
tokens (class token, distillation token) take no part and stay in front. Nothing here passes
gradients. Of equal scores the earlier token wins, on every device.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from .assignment import Assignment


def split_tokens(x: Tensor, num_protected: int) -> tuple[Tensor, Tensor]:
    """Unprotected tokens at even and at odd places of ``(B, N, ...)``."""
    return x[:, num_protected + num_protected % 2 :: 2], x[:, num_protected | 1 :: 2]


def match_bipartite(
    scores: Tensor,
    r: int,
    num_protected: int = 1,
    bidirectional: bool = False,
    sort_kept: bool = True,
) -> Assignment:
    """Choose the ``r`` tokens that are fused into a token of the other set.

    The best ``r`` even tokens go to the odd token they like best (ToMe, arXiv 2210.09461,
    Sec. 3.1). Bidirectional: only ``r // 2`` do, then as many odd tokens as are missing go to the
    remaining even token that likes them best, taking along what they have received (MCTF, arXiv
    2403.10030, Sec. 3.2). Tokens come out as protected, even, odd ones: even ones by place, odd
    ones by place or, if bidirectional, by descending score.

    Args:
        scores (Tensor): ``(B, E, O)``, higher is better, for the sets of :func:`split_tokens`.
        r (int): Number of tokens to remove, at most half of ``E + O``.
        num_protected (int): Number of protected tokens. Defaults to 1.
        bidirectional (bool): Match in both directions. Defaults to False.
        sort_kept (bool): Keep even tokens by place instead of by descending score, as ToMe leaves
            them where no token is protected. Defaults to True.

    Returns:
        Assignment: Of all ``num_protected + E + O`` tokens.

    Raises:
        ValueError: If ``r`` is negative or too large.
    """
    batch, num_even, num_odd = scores.shape
    if not 0 <= r <= (num_even + num_odd) // 2:
        raise ValueError(f'Of {num_even + num_odd} tokens at most half can go, not r={r}')
    r_even = r // 2 if bidirectional else r
    r_odd = r - r_even
    num_kept_even = num_even - r_even

    likes, partner = scores.max(dim=2)
    rank = rank_scores(likes)
    leaves = rank < r_even
    even_slots = (~leaves).long().cumsum(dim=1) - 1 if sort_kept else rank - r_even
    if bidirectional:
        gone = torch.zeros_like(likes).masked_fill(leaves, float('-inf'))
        likes, target = (scores + gone[..., None]).max(dim=1)
        rank = rank_scores(likes)
        odd_slots = torch.where(
            rank < r_odd, even_slots.gather(1, target), num_kept_even + rank - r_odd
        )
    else:
        odd_slots = num_kept_even + torch.arange(num_odd, device=scores.device).expand(batch, -1)
    even_slots = torch.where(leaves, odd_slots.gather(1, partner), even_slots)

    protected = torch.arange(num_protected, device=scores.device).expand(batch, -1)
    pair = (even_slots, odd_slots) if num_protected % 2 == 0 else (odd_slots, even_slots)
    slots = torch.cat((protected, _interleave(*pair) + num_protected), dim=1)
    return Assignment(slots, slots.shape[1] - r)


def rank_scores(scores: Tensor) -> Tensor:
    """Place of each score ``(B, N)`` in descending order; of equal ones the first comes first.

    Counts what is ahead of each instead of sorting: the same on every device, exportable, and
    quick for as many scores as an image has tokens. NaN comes last, so that these always are the
    numbers 0 to N - 1.
    """
    scores = scores.nan_to_num(float('-inf'), float('inf'), float('-inf'))
    mine, other = scores[:, :, None], scores[:, None, :]
    num = scores.shape[1]
    earlier = torch.ones(num, num, dtype=torch.bool, device=scores.device).tril(-1)
    return ((other > mine) | ((other == mine) & earlier)).sum(dim=2)


def _interleave(first: Tensor, second: Tensor) -> Tensor:
    paired = second.shape[1]
    pairs = torch.stack((first[:, :paired], second), dim=2).flatten(1)
    return torch.cat((pairs, first[:, paired:]), dim=1)


def no_autocast(device_type: str) -> AbstractContextManager:
    """No rounding to half precision, which would create ties; the meta device has no autocast."""
    return nullcontext() if device_type == 'meta' else torch.autocast(device_type, enabled=False)


@torch.no_grad()
def cosine_scores(x: Tensor, num_protected: int = 1) -> Tensor:
    """Cosine similarity between the two sets of tokens ``(B, N, C)``: ``(B, E, O)`` float32."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    with no_autocast(x.device.type):
        even, odd = split_tokens(F.normalize(x, dim=-1), num_protected)
        return even @ odd.transpose(1, 2)


@torch.no_grad()
def multi_criteria_scores(
    x: Tensor,
    informativeness: Tensor,
    size: Tensor | None = None,
    tau_sim: float = 1.0,
    tau_info: float = 20.0,
    tau_size: float = 40.0,
    num_protected: int = 1,
) -> Tensor:
    """MCTF's score: similar, uninformative, small tokens fuse first (arXiv 2403.10030, Sec. 3.1).

    ``((cos + 1) / 2) ** (1 / tau_sim)`` times a factor of each of the two tokens,
    ``(1 / informativeness) ** (1 / tau_info) * (1 / size) ** (1 / tau_size)``, relative to the
    largest of the image. A temperature of 0 switches its criterion off.

    Args:
        x (Tensor): Tokens ``(B, N, C)``.
        informativeness (Tensor): ``(B, N)`` attention that each token receives, positive.
        size (Tensor, optional): ``(B, N)`` number of patches in each token; None for ones.
        tau_sim (float): Temperature of the similarity. Defaults to 1.
        tau_info (float): Temperature of the informativeness. Defaults to 20.
        tau_size (float): Temperature of the size. Defaults to 40.
        num_protected (int): Number of protected tokens. Defaults to 1.

    Returns:
        Tensor: ``(B, E, O)`` float32 in [0, 1].
    """
    scores = cosine_scores(x, num_protected)
    # Rounding may leave [-1, 1], and a negative base has no power.
    scores = (0.5 * scores + 0.5).clamp(min=0) if tau_sim else torch.ones_like(scores)
    if tau_sim and tau_sim != 1:
        scores = scores ** (1 / tau_sim)
    factor = 1.0
    for criterion, tau in ((informativeness, tau_info), (size, tau_size)):
        if tau and criterion is not None:
            factor = factor * relative_inverse(criterion.to(scores.dtype)) ** (1 / tau)
    if isinstance(factor, float):
        return scores
    even, odd = split_tokens(factor, num_protected)
    return scores * (even[:, :, None] * odd[:, None, :])


def relative_inverse(x: Tensor) -> Tensor:
    """``1 / x`` of positive ``(B, N)``, divided by its largest value of each image."""
    x = x.clamp(min=torch.finfo(x.dtype).tiny)
    return x.amin(dim=1, keepdim=True) / x
