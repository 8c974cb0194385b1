"""How large tensors get, without a measurement of memory."""

import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that an operation returned inside of this context.

    Args:
        ends (tuple[int, ...]): Count tensors alone whose shape ends like this.
    """

    def __init__(self, ends: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.ends = ends
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            shape = tensor.shape if isinstance(tensor, torch.Tensor) else ()
            if tuple(shape[len(shape) - len(self.ends) :]) == self.ends:
                self.numel = max(self.numel, math.prod(shape))
        return out
