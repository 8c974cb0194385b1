"""What else than the backbone holds channels of the embedding: the heads that read its features."""

from functools import singledispatch

from mmpretrain.models.heads import LinearClsHead, VisionTransformerClsHead
from torch import nn

from ..heads import BNNeck, BNNeckHead, DCALHead, JPMHead
from ..heads.bnneck_head import ReIDHead
from ..heads.glca_branch import GLCABranch


@singledispatch
def embed_axes(module: nn.Module) -> dict[str, int]:
    """Weights and buffers of a module with an axis that runs over the embedding's channels.

    Heads of your own are made known by ``@embed_axes.register(MyHead)``.

    Args:
        module (nn.Module): A head.

    Returns:
        dict[str, int]: Name within the module -> dimension of that axis.

    Raises:
        ValueError: If nobody has said how the module reads the embedding.
    """
    raise ValueError(
        f'Pruning does not know how {type(module).__name__} reads the embedding; register it with '
        'vitdown.models.pruning.embed_axes, or use one of '
        f'{sorted(cls.__name__ for cls in embed_axes.registry if cls is not object)}'
    )


def refuse_copied_blocks(model: nn.Module) -> None:
    """Check that the head keeps no copy of a block, whatever is to be pruned.

    Raises:
        ValueError: If it does.
    """
    head = getattr(model, 'head', None)
    if isinstance(head, JPMHead):
        raise ValueError(
            f'{type(head).__name__} has a copy of the last block, which pruning would leave at its '
            'full size; prune a model with another head, such as BNNeckHead'
        )


def _nested(name: str, module: nn.Module) -> dict[str, int]:
    return {f'{name}.{key}': dim for key, dim in embed_axes(module).items()}


@embed_axes.register(nn.Linear)
def _(module: nn.Linear) -> dict[str, int]:
    return {'weight': 1}


@embed_axes.register(nn.LayerNorm)
def _(module: nn.LayerNorm) -> dict[str, int]:
    return {'weight': 0, 'bias': 0}


@embed_axes.register(nn.BatchNorm1d)
def _(module: nn.BatchNorm1d) -> dict[str, int]:
    return {'weight': 0, 'bias': 0, 'running_mean': 0, 'running_var': 0}


@embed_axes.register(BNNeck)
def _(module: BNNeck) -> dict[str, int]:
    axes = _nested('bn', module.bn)
    if module.classifier is not None:
        axes |= _nested('classifier', module.classifier)
    return axes


@embed_axes.register(GLCABranch)
def _(module: GLCABranch) -> dict[str, int]:
    """The block's input and output; its own heads and hidden channels stay."""
    axes = {}
    for name, _ in module.block.named_parameters():
        last = name.rpartition('.')[2]
        if name.startswith(('attn.qkv.', 'ffn.layers.0.0.')):
            if last == 'weight':
                axes[f'block.{name}'] = 1
        else:  # norms, layer scales, output projections: the embedding comes first
            axes[f'block.{name}'] = 0
    return axes | _nested('norm', module.norm)


def _own_classifier(head: ReIDHead) -> None:
    if getattr(head.loss_id, 'has_classifier', False) or any(
        True for loss in head.loss_metric for _ in loss.parameters()
    ):
        raise ValueError(
            f'A loss of {type(head).__name__} has weights over the embedding that pruning does not '
            'know; use losses without weights of their own while pruning'
        )


@embed_axes.register(BNNeckHead)
def _(module: BNNeckHead) -> dict[str, int]:
    _own_classifier(module)
    return _nested('bnneck', module.bnneck)


@embed_axes.register(DCALHead)
def _(module: DCALHead) -> dict[str, int]:
    _own_classifier(module)
    axes = _nested('glca', module.glca) if module.glca is not None else {}
    for branch, neck in module.necks.items():
        if isinstance(neck, BNNeck):
            axes |= _nested(f'necks.{branch}', neck)
        else:
            axes |= _nested(f'necks.{branch}.classifier', neck.classifier)
    return axes


@embed_axes.register(LinearClsHead)
def _(module: LinearClsHead) -> dict[str, int]:
    return _nested('fc', module.fc)


@embed_axes.register(VisionTransformerClsHead)
def _(module: VisionTransformerClsHead) -> dict[str, int]:
    first = [name for name in ('pre_logits', 'head', 'head_dist') if hasattr(module.layers, name)]
    if first[0] == 'pre_logits':
        first = first[:1]
    return {f'layers.{name}.weight': 1 for name in first}
