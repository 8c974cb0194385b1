"""Codes of few bits in whole bytes."""

import torch
from torch import Tensor


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes along the last axis, the first in the lowest bits.

    Args:
        codes (Tensor): ``(..., I)`` integers in ``[0, 2 ** bits - 1]``.
        bits (int): 1 to 8.

    Returns:
        Tensor: ``(..., ceil(I * bits / 8))`` uint8; rows are padded with zeros.

    Raises:
        ValueError: If a code does not fit.
    """
    if codes.numel() and (codes.min() < 0 or codes.max() >= 2**bits):
        raise ValueError(
            f'Codes from {codes.min()} to {codes.max()} do not fit into {bits} unsigned bits'
        )
    weights = torch.arange(bits, device=codes.device)
    stream = ((codes[..., None].int() >> weights) & 1).flatten(-2)
    padding = -stream.shape[-1] % 8
    stream = torch.nn.functional.pad(stream, (0, padding)).unflatten(-1, (-1, 8))
    return (stream << torch.arange(8, device=codes.device)).sum(dim=-1).to(torch.uint8)


def unpack_codes(packed: Tensor, bits: int, length: int) -> Tensor:
    """Inverse of :func:`pack_codes`.

    Args:
        packed (Tensor): ``(..., bytes)`` uint8.
        bits (int): 1 to 8.
        length (int): Number of codes I in a row.

    Returns:
        Tensor: ``(..., I)`` uint8.

    Raises:
        ValueError: If rows are too short or too long.
    """
    expected = -(-length * bits // 8)
    if packed.shape[-1] != expected:
        raise ValueError(
            f'{length} codes of {bits} bits take {expected} bytes a row, not {packed.shape[-1]}'
        )
    stream = (packed[..., None].int() >> torch.arange(8, device=packed.device)) & 1
    stream = stream.flatten(-2)[..., : length * bits].unflatten(-1, (length, bits))
    return (stream << torch.arange(bits, device=packed.device)).sum(dim=-1).to(torch.uint8)
