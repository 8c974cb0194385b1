"""2:4 sparsity: two of every four neighbouring weights are zero, which newer GPUs compute faster.

On top of structural pruning or by itself. Weights become sparse by
:class:`SemiStructuredSparsityHook`; :func:`to_semi_structured` then stores them the way PyTorch's
sparse kernels take them.
"""

import torch
from torch import Tensor, nn

from ..backbones import VisionTransformer

# What PyTorch's kernels take: rows and columns in multiples of these, 16-bit floats
_ROWS, _COLUMNS = 32, 64


def mask_2_to_4(weight: Tensor) -> Tensor:
    """Which weights stay: of every four neighbours in a row the two of largest magnitude.

    Args:
        weight (Tensor): ``(rows, columns)``, columns a multiple of 4.

    Returns:
        Tensor: Bool, of the same shape. Of equal magnitudes the first stay.

    Raises:
        ValueError: For another number of columns.
    """
    if weight.ndim != 2 or weight.shape[1] % 4:
        raise ValueError(
            f'2:4 sparsity is of rows of a multiple of 4 weights, got {tuple(weight.shape)}'
        )
    groups = weight.detach().abs().unflatten(1, (-1, 4))
    kept = groups.argsort(dim=-1, descending=True, stable=True)[..., :2]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, kept, True).flatten(1)


def sparse_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers in the blocks of a plain ViT whose sizes the sparse kernels take.

    Raises:
        ValueError: If the model's backbone is no plain ViT, or there is no such layer.
    """
    backbone = getattr(model, 'backbone', model)
    if not isinstance(backbone, VisionTransformer):
        raise ValueError(f'2:4 sparsity is for plain ViTs, not for {type(backbone).__name__}')
    found = {
        name: module
        for name, module in backbone.layers.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features % _ROWS == 0
        and module.in_features % _COLUMNS == 0
    }
    if not found:
        raise ValueError(
            f'No linear layer has rows and columns in multiples of {_ROWS} and {_COLUMNS}, as 2:4 '
            'kernels need; prune in larger groups (group_sizes)'
        )
    return found


def to_semi_structured(model: nn.Module) -> list[str]:
    """Store 2:4 sparse weights for PyTorch's sparse kernels, in place, for inference.

    Args:
        model (nn.Module): In half precision on a GPU of compute capability 8.0 or later.

    Returns:
        list[str]: Names of the layers stored so, within the backbone's blocks.

    Raises:
        RuntimeError: If device or precision do not suit.
        ValueError: If weights are not 2:4 sparse.
    """
    layers = sparse_layers(model)
    for name, layer in layers.items():
        weight = layer.weight
        if weight.device.type != 'cuda' or weight.dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError(
                f'2:4 kernels need 16-bit floats on a GPU, the model is {weight.dtype} on '
                f'{weight.device}'
            )
        if (weight.unflatten(1, (-1, 4)) != 0).sum(dim=-1).max() > 2:
            raise ValueError(
                f'layers.{name} is not 2:4 sparse; train with SemiStructuredSparsityHook first'
            )
    for layer in layers.values():
        sparse = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        layer.weight = nn.Parameter(sparse, requires_grad=False)
    return list(layers)
