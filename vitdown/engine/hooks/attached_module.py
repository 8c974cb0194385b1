from collections.abc import Callable
from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.runner.checkpoint import weights_to_cpu
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, of one that is wrapped for distributed training."""
    return model.module if is_model_wrapper(model) else model


def is_training_run(runner: Runner) -> bool:
    """Whether this is ``runner.train()``: only then the optimizer is built."""
    return isinstance(runner.optim_wrapper, OptimWrapper)


def check_counts_epochs(runner: Runner, option: str) -> None:
    """Check that a training has epochs.

    Raises:
        ValueError: If it counts iterations.
    """
    if not isinstance(runner.train_loop, EpochBasedTrainLoop):
        raise ValueError(
            f'{option} counts epochs, but this training counts iterations; train with '
            'train_cfg=dict(by_epoch=True, max_epochs=...)'
        )


#: Key of checkpoints for the names of the modules that hooks brought along.
ATTACHED = 'attached_modules'


def check_attached(runner: Runner, checkpoint: dict) -> None:
    """Check that hooks bring the modules along that those of an interrupted training brought.

    Raises:
        ValueError: If one is missing, or they come in another order: the optimizer's state tells
            parameters by their places.
    """
    attached = (getattr(hook, 'attached', None) for hook in runner.hooks)
    present = [module.name for module in attached if module is not None]
    expected = list(checkpoint.get(ATTACHED, ()))
    for name in expected:
        if name not in present:
            raise ValueError(
                f'The training to resume had a hook that brings {name} along. Resume with it '
                '(stop_epoch ends mixing, StopDistillHook distillation), or start from the weights '
                'by load_from'
            )
    if expected != [name for name in present if name in expected]:
        raise ValueError(
            f'The hooks of the training to resume brought along {", ".join(expected)}, in this '
            f'order, those of this one {", ".join(present)}; give custom_hooks their former order'
        )


class AttachedModule:
    """Parameters that a training hook brings along, as long as the training runs.

    The module becomes part of the model, so that devices, gradient synchronisation and optimizer
    treat it as they treat the model. Checkpoints hold its weights under a key of their own: the
    model's state dict in them is that of the model without it.

    Its weights and biases train as those of a layer of the model do, with the same learning rate,
    schedule and weight decay.

    Args:
        name (str): Attribute of the model, and key in checkpoints.
        module (nn.Module): The module.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module

    @property
    def _prefix(self) -> str:
        return f'{self.name}.'

    def attach(self, runner: Runner, like: nn.Module) -> None:
        """Join model and optimizer; to be called in ``before_run``.

        Args:
            runner (Runner): Its optimizer is built and its checkpoint not yet loaded.
            like (nn.Module): Layer of the model whose weight and bias show how to train; without
                them it is as the optimizer's first group does.

        Raises:
            ValueError: If the model has an attribute of this name, or is wrapped by something that
                cannot take more parameters.
        """
        model = unwrap(runner.model)
        if hasattr(model, self.name):
            raise ValueError(
                f'{type(model).__name__} has an attribute {self.name!r} already; if a training '
                'that failed left it there, build the model anew'
            )
        parameter = next(model.parameters())
        model.add_module(self.name, self.module.to(parameter.device))
        groups = runner.optim_wrapper.param_groups
        for own in self.module.parameters():
            vector = own.ndim < 2 and getattr(like, 'bias', None) is not None
            shown = getattr(like, 'bias' if vector else 'weight', None)
            self._group_of(groups, shown)['params'].append(own)
        if is_model_wrapper(runner.model):
            if not isinstance(runner.model, DistributedDataParallel):
                raise ValueError(
                    f'{type(runner.model).__name__} cannot take the parameters of {self.name}; '
                    'train with MMDistributedDataParallel'
                )
            # Made before there were these parameters: gradients are synchronised by a new one.
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)

    @staticmethod
    def _group_of(groups: list[dict], parameter: nn.Parameter | None) -> dict:
        for group in groups:
            if any(p is parameter for p in group['params']):
                return group
        return groups[0]

    def detach(self, runner: Runner) -> None:
        """Leave the model, if it is part of it."""
        model = unwrap(runner.model)
        if hasattr(model, self.name):
            delattr(model, self.name)

    def rejoin(self, runner: Runner) -> None:
        """Become part of the model again."""
        unwrap(runner.model).add_module(self.name, self.module)

    def before_save_checkpoint(self, checkpoint: dict) -> None:
        """Take the weights out of the model's state dict, if they are there, and save them."""
        state_dict = checkpoint['state_dict']
        for key in [key for key in state_dict if key.startswith(self._prefix)]:
            del state_dict[key]
        checkpoint[self.name] = weights_to_cpu(self.module.state_dict())
        checkpoint.setdefault(ATTACHED, []).append(self.name)

    def after_load_checkpoint(self, checkpoint: dict, resume: bool) -> None:
        """Put the weights back; a training that does not resume keeps its initial ones.

        Raises:
            ValueError: If the checkpoint to resume from has none.
        """
        if resume and self.name not in checkpoint:
            raise ValueError(
                f'The checkpoint has no {self.name}: it was trained without the hook that brings '
                'it. Resume with the hooks of that run, or start from its weights by load_from'
            )
        weights = checkpoint[self.name] if resume else self.module.state_dict()
        state_dict = checkpoint.get('state_dict', checkpoint)
        state_dict.update({self._prefix + key: value for key, value in weights.items()})


class ModuleHook(Hook):
    """Base of hooks that may bring parameters along, in :attr:`attached`."""

    # After EMAHook, which expects each parameter it averages in the state dict.
    priority = 'LOW'
    attached: AttachedModule | None = None

    def attach(self, runner: Runner, name: str, module: nn.Module, like: nn.Module) -> None:
        """Bring a module along; arguments are those of :class:`AttachedModule`.

        Raises:
            ValueError: If an EMAHook comes later and so would average it.
        """
        later = runner.hooks[runner.hooks.index(self) + 1 :] if self in runner.hooks else ()
        if any(isinstance(hook, EMAHook) for hook in later):
            raise ValueError(
                f'EMAHook must come before {type(self).__name__}: set its priority above '
                f"{self.priority}, e.g. dict(type='EMAHook', priority='NORMAL')"
            )
        self.attached = AttachedModule(name, module)
        self.attached.attach(runner, like)

    def leave_failures(self, runner: Runner) -> None:
        """Have ``after_train`` called also if the training fails, which MMEngine does not do."""

        def guarded(step: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> Any:
                try:
                    return step()
                except BaseException:
                    self.after_train(runner)
                    raise

            return run

        runner.load_or_resume = guarded(runner.load_or_resume)
        runner.train_loop.run = guarded(runner.train_loop.run)

    # Without the module in validation: EMAHook goes through the weights of the model and of its
    # average side by side, and the average has none of it.
    def before_val(self, runner: Runner) -> None:
        if self.attached is not None:
            self.attached.detach(runner)

    def after_val(self, runner: Runner) -> None:
        if self.attached is not None:
            self.attached.rejoin(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.attached is not None:
            self.attached.before_save_checkpoint(checkpoint)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.attached is not None:
            self.attached.after_load_checkpoint(checkpoint, runner._resume)

    def after_train(self, runner: Runner) -> None:
        if self.attached is not None:
            self.attached.detach(runner)
            self.attached = None
