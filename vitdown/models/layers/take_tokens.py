from torch import Tensor


def take_tokens(x: Tensor, rows: Tensor) -> Tensor:
    """Some tokens of each image.

    ``x.take_along_dim(rows[..., None], dim=-2)``, which an exported graph would tie to one batch
    size.

    Args:
        x (Tensor): Tokens ``(B, N, C)`` or, by heads, ``(B, H, N, d)``.
        rows (Tensor): ``(B, R)`` int64.

    Returns:
        Tensor: ``(B, R, C)`` or ``(B, H, R, d)``.
    """
    rows = rows.unsqueeze(-1) if x.ndim == 3 else rows[:, None, :, None]
    return x.gather(-2, rows.expand(*x.shape[:-2], -1, x.shape[-1]))
