from mmengine.model import BaseModule
from torch import Tensor

from vitdown.registry import MODELS


@MODELS.register_module()
class TokenPooling(BaseModule):
    """One vector an image from the tokens of a backbone that returns all of them (e.g. timm's).

    Args:
        mode (str): ``'cls'`` for the token at index 0, ``'mean'`` for the mean over the others.
        num_extra_tokens (int): Leading tokens that are not patches. Defaults to 1.
    """

    def __init__(self, mode: str = 'cls', num_extra_tokens: int = 1) -> None:
        super().__init__()
        if mode not in ('cls', 'mean'):
            raise ValueError(f"mode must be 'cls' or 'mean', got {mode!r}")
        self.mode = mode
        self.num_extra_tokens = num_extra_tokens

    def forward(self, feats: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tuple of tokens ``(B, N, C)`` to a tuple of vectors ``(B, C)``."""
        if self.mode == 'cls':
            return tuple(x[:, 0] for x in feats)
        return tuple(x[:, self.num_extra_tokens :].mean(dim=1) for x in feats)
