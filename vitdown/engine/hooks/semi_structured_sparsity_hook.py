import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from vitdown.models.pruning.semi_structured import mask_2_to_4, sparse_layers
from vitdown.registry import HOOKS

from .attached_module import unwrap


@HOOKS.register_module()
class SemiStructuredSparsityHook(Hook):
    """Keep two of every four neighbouring weights of a ViT's linear layers while it is trained.

    The weights of largest magnitude when training starts stay, the others are zero from then on.
    For GPUs with 2:4 sparse kernels, see :func:`vitdown.models.pruning.to_semi_structured`; layers
    whose sizes those do not take stay dense.
    """

    def before_train(self, runner: Runner) -> None:
        layers = sparse_layers(unwrap(runner.model)).values()
        self._masks: list[tuple[nn.Parameter, Tensor]] = [
            (layer.weight, mask_2_to_4(layer.weight)) for layer in layers
        ]
        self._apply()
        optimizer = runner.optim_wrapper.optimizer
        self._handle = optimizer.register_step_post_hook(lambda *args: self._apply())

    @torch.no_grad()
    def _apply(self) -> None:
        for weight, mask in self._masks:
            weight.mul_(mask)

    def after_train(self, runner: Runner) -> None:
        self._handle.remove()
