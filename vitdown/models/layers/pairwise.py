"""Pair-wise cross-attention (PWCA) of DCAL, arXiv 2205.02151, Sec. 3.3."""

import torch
from torch import Tensor, nn


def pair_indices(
    batch: int,
    pairing: str = 'random',
    labels: Tensor | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a partner for every image of a batch, without host synchronisation.

    Partners form cycles and not swaps: with ``'random'`` and ``'inter'`` one cycle over the batch,
    with ``'intra'`` one over the images of each label. Two images that are each other's partner
    would share their class token through all layers, whatever their labels.

    Args:
        batch (int): Number of images B, at least 2.
        pairing (str): ``'random'``; ``'inter'`` for partners of another label (as far as possible
            where one label holds more than half of the batch); ``'intra'`` for partners of the
            same label (an image alone with its label is its own partner).
        labels (Tensor, optional): ``(B,)``, needed for ``'inter'`` and ``'intra'``.
        device (torch.device, optional): Where the indices are drawn; the labels' by default.
        generator (torch.Generator, optional): On the same device.

    Returns:
        Tensor: ``(B,)`` int64, a permutation.

    Raises:
        ValueError: If the batch is too small, the pairing unknown or the labels are missing.
    """
    if batch < 2:
        raise ValueError(
            f'Pair-wise cross-attention needs at least 2 images in a batch, got {batch}'
        )
    if pairing not in ('random', 'inter', 'intra'):
        raise ValueError(f"pairing must be 'random', 'inter' or 'intra', got {pairing!r}")
    if labels is not None:
        device = labels.device if device is None else device
    elif pairing != 'random':
        raise ValueError(f'pairing={pairing!r} needs labels')
    drawn = torch.randperm(batch, device=device, generator=generator)
    if labels is None or pairing == 'random':
        return _next_in_circle(drawn)
    same = labels[:, None] == labels
    # Groups in random order, the largest first: each is known by the first of its images drawn.
    place = torch.empty_like(drawn).scatter_(0, drawn, torch.arange(batch, device=device))
    group = torch.where(same, place, batch).amin(dim=1) - batch * same.sum(dim=1)
    order = (group * batch + place).argsort()
    if pairing == 'inter':
        # Every other seat of the circle, then the seats between: no group of at most half the
        # batch sits next to itself.
        circle = torch.empty_like(order)
        half = (batch + 1) // 2
        circle[::2], circle[1::2] = order[:half], order[half:]
        return _next_in_circle(circle)
    position = torch.arange(batch, device=device)
    group = group[order]
    begins = group != group.roll(1)
    begins[0] = True
    start = torch.where(begins, position, 0).cummax(dim=0).values
    follower = torch.where(begins.roll(-1), start, (position + 1) % batch)
    return torch.empty_like(order).scatter_(0, order, order[follower])


def _next_in_circle(circle: Tensor) -> Tensor:
    return torch.empty_like(circle).scatter_(0, circle, circle.roll(-1))


def pairwise_cross_attention(
    layer: nn.Module, x: Tensor, partner_tokens: Tensor, need_weights: bool = False
) -> tuple[Tensor, Tensor | None]:
    """One encoder layer in which tokens ask themselves and another image's tokens.

    One softmax runs over the keys of both; residuals and MLP belong to ``x`` alone.

    Args:
        layer (TransformerEncoderLayer): The layer of self-attention whose weights are used.
        x (Tensor): Tokens ``(B, N, C)``.
        partner_tokens (Tensor): ``(B, M, C)`` tokens of each image's partner.
        need_weights (bool): Also return the softmax output.

    Returns:
        tuple: Tokens ``(B, N, C)`` and the weights ``(B, H, N, N + M)``, own keys first, or None.
    """
    attn = layer.attn
    query, key, value = attn.project_qkv(layer.ln1(x))
    _, partner_key, partner_value = attn.project_qkv(layer.ln1(partner_tokens))
    key, value = torch.cat((key, partner_key), dim=2), torch.cat((value, partner_value), dim=2)
    out, weights = attn.attend(query, key, value, need_weights=need_weights)
    x = x + out
    return layer.ffn(layer.ln2(x), identity=x), weights


def two_stream_attention(
    attn: nn.Module,
    x: Tensor,
    partner: Tensor,
    partner_stream: str = 'pwca',
    need_weights: bool | str = False,
) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor] | None]:
    """Self-attention of one stream and pair-wise cross-attention of another in one pass.

    The streams lie behind each other on the batch axis, share every linear layer and part only
    where queries meet keys.

    Args:
        attn (MultiheadAttention): Attention module of the layer.
        x (Tensor): ``(2B, N, C)`` normalised tokens, the self-attention stream first.
        partner (Tensor): ``(B,)`` index of each image's partner.
        partner_stream (str): Whose keys and values stand for the partner: ``'pwca'`` for those of
            its own pair-wise stream, ``'sa'`` for those of its self-attention stream.
        need_weights (bool | str): See :meth:`MultiheadAttention.attend`.

    Returns:
        tuple: Output ``(2B, N, C)``, and the weights of self-attention ``(B, H, N, N)``, their
        factors or None.
    """
    if partner_stream not in ('pwca', 'sa'):
        raise ValueError(f"partner_stream must be 'pwca' or 'sa', got {partner_stream!r}")
    (query, pair_query), (key, pair_key), (value, pair_value) = (
        part.chunk(2) for part in attn.project_qkv(x)
    )
    out, weights = attn.mix(query, key, value, need_weights=need_weights)
    other_key, other_value = (pair_key, pair_value) if partner_stream == 'pwca' else (key, value)
    # The gradient of index_select is cheaper than that of indexing, which counts on repetitions.
    pair_out, _ = attn.mix(
        pair_query,
        torch.cat((pair_key, other_key.index_select(0, partner)), dim=2),
        torch.cat((pair_value, other_value.index_select(0, partner)), dim=2),
    )
    return attn.project_out(torch.cat((out, pair_out))), weights
