import math
from collections.abc import Sequence
from numbers import Real

#: Where to get token fusion, for messages about backbones that have none
TOKEN_FUSION_HINT = (
    "vitdown.VisionTransformer takes token_fusion=dict(type='MCTF', r=16), as do DeiT3, "
    'DistilledVisionTransformer, HybridVisionTransformer, LVViT, NViT and T2TViT'
)


def check_integers(
    name: str, value: object, low: int, high: int | None = None, sizes: Sequence[int] = ()
) -> None:
    """Check an option that is an integer, or a sequence of integers.

    Args:
        name (str): What the option is called, for the message.
        value (object): What the user gave.
        low (int): Smallest integer allowed.
        high (int, optional): Largest integer allowed; None for no limit.
        sizes (Sequence[int]): Lengths that a sequence may have; empty for a single integer.

    Raises:
        ValueError: If the value is anything else.
    """
    items = value if sizes else [value]
    if (
        isinstance(items, Sequence)
        and (not sizes or len(items) in sizes)
        and all(
            type(item) is int and item >= low and (high is None or item <= high) for item in items
        )
    ):
        return
    what = f'{" or ".join(map(str, sizes))} integer(s) in a sequence' if sizes else 'an integer'
    limits = f'of at least {low}' if high is None else f'from {low} to {high}'
    raise ValueError(f'{name} must be {what} {limits}, got {value!r}')


def check_numbers(low: float = 0, high: float = math.inf, **numbers: object) -> None:
    """Check options that are finite numbers.

    Args:
        low (float): Smallest number allowed. Defaults to 0.
        high (float): Largest number allowed. Defaults to infinity, for no limit.
        **numbers: Values by the options' names.

    Raises:
        ValueError: If one is anything else.
    """
    limits = f'from {low} to {high}' if math.isfinite(high) else f'of at least {low}'
    for name, value in numbers.items():
        number = float(value) if isinstance(value, Real) else math.nan
        if isinstance(value, bool) or not math.isfinite(number) or not low <= number <= high:
            raise ValueError(f'{name} must be a number {limits}, got {value!r}')


def check_flags(**flags: object) -> None:
    """Check options that are switches.

    Raises:
        ValueError: If one is no bool.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f'{name} must be True or False, got {value!r}')


def refuse_token_fusion(backbone: object, token_fusion: object, reason: str) -> None:
    """Say why a backbone takes no token fusion.

    Args:
        backbone (object): The backbone, for its class's name.
        token_fusion (object): What the user gave; None and empty ones pass.
        reason (str): Why not.

    Raises:
        ValueError: If token fusion is asked for.
    """
    if token_fusion:
        raise ValueError(
            f'{type(backbone).__name__} {reason} and takes no token_fusion; {TOKEN_FUSION_HINT}'
        )
