import inspect
from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitdown.models.distillation import (
    DistilledClassifier,
    Distiller,
    FrozenTeacher,
    Observation,
    Tap,
    build_losses,
    build_teacher,
    check_loss_configs,
    find_module,
)
from vitdown.models.option_checks import check_flags, check_integers
from vitdown.registry import HOOKS

from .attached_module import ModuleHook, check_counts_epochs, is_training_run, unwrap


def bind_call(model: nn.Module, args: tuple, kwargs: dict) -> dict:
    """Arguments of ``model.forward`` by name, with its defaults."""
    call = inspect.signature(model.forward).bind(*args, **kwargs)
    call.apply_defaults()
    return call.arguments


@HOOKS.register_module()
class DistillationHook(ModuleHook):
    """Add losses between a model and a teacher, or its own layers, to a training.

    Works with any classifier of mmpretrain and with ``ReIdentifier``, whose config stays as it is.
    The teacher sees the images that the model sees, after all augmentation, in the teacher's own
    normalisation; it is frozen, in evaluation mode, and part of no state dict or optimizer.
    Checkpoints hold the model alone, and the weights of losses that have some (for resuming)
    beside it.

    Args:
        losses (Mapping[str, dict]): Configs of the losses by the names in the log, e.g.
            ``dict(loss_kd=dict(type='KDLoss'))``; see :func:`build_losses`.
        teacher (str | dict | nn.Module, optional): See :func:`build_teacher`.
        teacher_checkpoint (str, optional): See :func:`build_teacher`.
        teacher_source (str, optional): See :func:`build_teacher`.
        teacher_eval (bool): False runs the teacher in training mode, as the official code of NKD
            does by mistake. Defaults to True.
        taps (Mapping[str, str | dict], optional): See :class:`Distiller`.
        warmup_epochs (int): The losses' factor grows from ``1 / warmup_epochs`` in the first epoch
            to 1, as DKD's authors have it; what KD takes from the model's own losses grows with it.
            0 for 1 throughout. Defaults to 0.
    """

    def __init__(
        self,
        losses: Mapping[str, dict],
        teacher: str | Mapping | nn.Module | None = None,
        teacher_checkpoint: str | None = None,
        teacher_source: str | None = None,
        teacher_eval: bool = True,
        taps: Mapping[str, str | dict] | None = None,
        warmup_epochs: int = 0,
    ) -> None:
        check_integers('warmup_epochs', warmup_epochs, 0)
        check_flags(teacher_eval=teacher_eval)
        if not isinstance(taps, Mapping | None):
            raise ValueError(
                f"taps must be a dict such as dict(student_logits='head.fc'), got {taps!r}"
            )
        check_loss_configs(losses)
        self.losses = {name: dict(config) for name, config in losses.items()}
        self.taps = dict(taps or {})
        self.warmup_epochs = warmup_epochs
        self.enabled = True
        self.waiting = False
        self._factor = 1.0
        self._teacher = None
        if teacher is not None:
            self._teacher = (teacher, teacher_checkpoint, teacher_source)
        elif teacher_checkpoint is not None:
            raise ValueError('There is a teacher_checkpoint, but no teacher')
        self._teacher_eval = teacher_eval
        self._distiller: Distiller | None = None
        self._seen: Observation | None = None
        self._handles: list[RemovableHandle] = []

    def before_run(self, runner: Runner) -> None:
        """Build teacher and losses, and find the taps.

        Raises:
            ValueError: If teacher, losses, taps and model do not fit one another.
        """
        if not is_training_run(runner):
            return
        self.leave_failures(runner)
        model = unwrap(runner.model)
        if isinstance(model, DistilledClassifier):
            raise ValueError(
                f'DistilledClassifier has its own losses; add those of {type(self).__name__} to '
                'its distill_losses'
            )
        losses = build_losses({n: self.complete(dict(c), model) for n, c in self.losses.items()})
        teacher = None
        if self._teacher is not None:
            network = build_teacher(*self._teacher).to(next(model.parameters()).device)
            teacher = FrozenTeacher(network, training=not self._teacher_eval)
        self._distiller = Distiller(model, losses, teacher, self.taps)
        if any(True for _ in losses.parameters()):
            self.attach(runner, '_'.join(losses), losses, self._classifier(model))
        # Already here, before any hook that adds losses: those are not the model's own.
        self._handles = [model.register_forward_hook(self._weigh)]

    def _classifier(self, model: nn.Module) -> nn.Module:
        tap = Tap.parse(self.taps.get('student_logits', 'auto'), 'student_logits', model)
        module = find_module(model, tap.paths[0])
        return next((part for part in module.modules() if isinstance(part, nn.Linear)), module)

    def complete(self, loss: dict, model: nn.Module) -> dict:
        """The config of a loss, with what can be read from the model."""
        return loss

    def before_train(self, runner: Runner) -> None:
        if self.warmup_epochs:
            check_counts_epochs(runner, 'warmup_epochs')
        model = unwrap(runner.model)
        self._handles += [
            # After hooks that change the images, which come before this one by their priority.
            model.register_forward_pre_hook(self._start, with_kwargs=True),
            # Called even when the model fails, so that no tap is left behind.
            model.register_forward_hook(self._finish, with_kwargs=True, always_call=True),
        ]

    def before_train_epoch(self, runner: Runner) -> None:
        if self.warmup_epochs:
            self._factor = min((runner.epoch + 1) / self.warmup_epochs, 1.0)

    def after_train(self, runner: Runner) -> None:
        super().after_train(runner)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._seen is not None:  # interrupted within a step, after which no hook is called
            self._seen.__exit__()
        self._distiller = self._seen = None

    def _start(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        call = bind_call(model, args, kwargs)
        if self.enabled and not self.waiting and model.training and call.get('mode') == 'loss':
            self._seen = self._distiller.record(call['inputs'], call['data_samples'])
            self._seen.__enter__()

    def _weigh(
        self, model: nn.Module, args: tuple, losses: dict[str, Tensor]
    ) -> dict[str, Tensor] | None:
        return None if self._seen is None else self._distiller.weigh(losses, self._factor)

    def _finish(
        self, model: nn.Module, args: tuple, kwargs: dict, losses: dict[str, Tensor] | None
    ) -> dict[str, Tensor] | None:
        call = bind_call(model, args, kwargs)
        if call.get('mode') != 'loss' or not model.training:
            return None
        seen, self._seen = self._seen, None
        if seen is not None:
            seen.__exit__()
        if losses is None:
            return None
        if seen is None:
            zero = self._distiller.zero()
            if not isinstance(zero, Tensor):
                return None
            # Another hook's may be there, with the gradients of its parameters.
            return {**losses, 'loss_stopped': losses.get('loss_stopped', 0) + zero}
        return self._distiller.add_to(losses, seen, call['data_samples'], self._factor)


@HOOKS.register_module()
class NKDHook(DistillationHook):
    """Normalized knowledge distillation (arXiv 2303.13005); see :func:`nkd_loss`.

    Args:
        teacher (str | dict | nn.Module): See :class:`DistillationHook`.
        teacher_checkpoint (str, optional): See :class:`DistillationHook`.
        temperature (float): Defaults to 1.0.
        gamma (float): Defaults to 1.5.
        loss_weight (float): Defaults to 1.0.
        **kwargs: Other arguments of :class:`DistillationHook`, e.g.
            ``taps=dict(student_logits='head.fc')``.
    """

    def __init__(
        self,
        teacher: str | Mapping | nn.Module,
        teacher_checkpoint: str | None = None,
        temperature: float = 1.0,
        gamma: float = 1.5,
        loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        loss = dict(type='NKDLoss', temperature=temperature, gamma=gamma, loss_weight=loss_weight)
        super().__init__(dict(loss_nkd=loss), teacher, teacher_checkpoint, **kwargs)


@HOOKS.register_module()
class KDHook(DistillationHook):
    """Knowledge distillation (arXiv 1503.02531); see :func:`kd_loss`.

    The model's own losses are multiplied by ``1 - alpha``.

    Args:
        teacher (str | dict | nn.Module): See :class:`DistillationHook`.
        teacher_checkpoint (str, optional): See :class:`DistillationHook`.
        temperature (float): Defaults to 4.0.
        alpha (float): Defaults to 0.5.
        **kwargs: Other arguments of :class:`DistillationHook`.
    """

    def __init__(
        self,
        teacher: str | Mapping | nn.Module,
        teacher_checkpoint: str | None = None,
        temperature: float = 4.0,
        alpha: float = 0.5,
        **kwargs: Any,
    ) -> None:
        loss = dict(type='KDLoss', temperature=temperature, alpha=alpha)
        super().__init__(dict(loss_kd=loss), teacher, teacher_checkpoint, **kwargs)


@HOOKS.register_module()
class DKDHook(DistillationHook):
    """Decoupled knowledge distillation (arXiv 2203.08679); see :func:`dkd_loss`.

    Args:
        teacher (str | dict | nn.Module): See :class:`DistillationHook`.
        teacher_checkpoint (str, optional): See :class:`DistillationHook`.
        temperature (float): Defaults to 4.0.
        alpha (float): Defaults to 1.0.
        beta (float): Defaults to 6.0.
        **kwargs: Other arguments of :class:`DistillationHook`, e.g. ``warmup_epochs=20``, without
            which a large ``beta * temperature**2`` acts like a large learning rate at the start.
    """

    def __init__(
        self,
        teacher: str | Mapping | nn.Module,
        teacher_checkpoint: str | None = None,
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 6.0,
        **kwargs: Any,
    ) -> None:
        loss = dict(type='DKDLoss', temperature=temperature, alpha=alpha, beta=beta)
        super().__init__(dict(loss_dkd=loss), teacher, teacher_checkpoint, **kwargs)


@HOOKS.register_module()
class ViTKDHook(DistillationHook):
    """Feature distillation between ViTs (arXiv 2209.02432); see :class:`ViTKDLoss`.

    Args:
        teacher (str | dict | nn.Module): See :class:`DistillationHook`.
        teacher_checkpoint (str, optional): See :class:`DistillationHook`.
        teacher_dims (int): Width of the teacher's tokens.
        alpha (float): Defaults to 3e-5.
        beta (float): Defaults to 3e-6.
        mask_ratio (float): Defaults to 0.5.
        **kwargs: Other arguments of :class:`DistillationHook`.
    """

    def __init__(
        self,
        teacher: str | Mapping | nn.Module,
        teacher_checkpoint: str | None = None,
        *,
        teacher_dims: int,
        alpha: float = 3e-5,
        beta: float = 3e-6,
        mask_ratio: float = 0.5,
        **kwargs: Any,
    ) -> None:
        loss = dict(
            type='ViTKDLoss',
            teacher_dims=teacher_dims,
            alpha=alpha,
            beta=beta,
            mask_ratio=mask_ratio,
        )
        super().__init__(dict(loss_vitkd=loss), teacher, teacher_checkpoint, **kwargs)

    def complete(self, loss: dict, model: nn.Module) -> dict:
        return {'student_dims': model.backbone.embed_dims, **loss}


@HOOKS.register_module()
class USKDHook(DistillationHook):
    """Self-distillation without a teacher (arXiv 2303.13005); see :func:`uskd_loss`.

    Args:
        in_channels (int, optional): Width of the middle feature, which is that of the layer in the
            middle of a ViT or of the third stage of a ResNet unless ``taps=dict(student_mid=...)``
            names another module. Defaults to ``backbone.embed_dims``, where there is one.
        num_classes (int, optional): Defaults to the model's.
        alpha (float): Defaults to 1.0.
        beta (float): Defaults to 0.1.
        mu (float): Defaults to 0.005.
        rank_mode (str): See :func:`rank_score`. Defaults to ``'log_prob'``.
        exclude_zero_targets (bool): See :func:`uskd_loss`. Defaults to False.
        **kwargs: Other arguments of :class:`DistillationHook`.
    """

    def __init__(
        self,
        in_channels: int | None = None,
        num_classes: int | None = None,
        alpha: float = 1.0,
        beta: float = 0.1,
        mu: float = 0.005,
        rank_mode: str = 'log_prob',
        exclude_zero_targets: bool = False,
        **kwargs: Any,
    ) -> None:
        loss = dict(
            type='USKDLoss',
            in_channels=in_channels,
            num_classes=num_classes,
            alpha=alpha,
            beta=beta,
            mu=mu,
            rank_mode=rank_mode,
            exclude_zero_targets=exclude_zero_targets,
        )
        super().__init__(dict(loss_uskd=loss), **kwargs)

    def complete(self, loss: dict, model: nn.Module) -> dict:
        if loss['in_channels'] is None:
            backbone = getattr(model, 'backbone', model)
            width = getattr(backbone, 'embed_dims', None)
            if not isinstance(width, int):
                raise ValueError(
                    f'Set in_channels in USKDHook: {type(backbone).__name__} does not tell the '
                    'width of its middle feature'
                )
            loss['in_channels'] = width
        if loss['num_classes'] is None:
            loss['num_classes'] = getattr(self._classifier(model), 'out_features', None)
            if loss['num_classes'] is None:
                raise ValueError(
                    'Set num_classes in USKDHook: taps.student_logits names no linear classifier'
                )
        return loss


@HOOKS.register_module()
class StopDistillHook(Hook):
    """Train without distillation from an epoch on: the model's own losses alone.

    Args:
        stop_epoch (int): First epoch without, counted from 0.
    """

    def __init__(self, stop_epoch: int) -> None:
        check_integers('stop_epoch', stop_epoch, 0)
        self.stop_epoch = stop_epoch

    def before_train(self, runner: Runner) -> None:
        """Find what to stop.

        Raises:
            ValueError: If there is nothing to stop, or there are no epochs.
        """
        check_counts_epochs(runner, 'stop_epoch of StopDistillHook')
        self._switches = [hook for hook in runner.hooks if isinstance(hook, DistillationHook)]
        self._wrapper = unwrap(runner.model)
        if not self._switches and not isinstance(self._wrapper, DistilledClassifier):
            raise ValueError('StopDistillHook: nothing is distilled in this run')

    def before_train_epoch(self, runner: Runner) -> None:
        enabled = runner.epoch < self.stop_epoch
        for hook in self._switches:
            hook.enabled = enabled
        if isinstance(self._wrapper, DistilledClassifier):
            self._wrapper.distill = enabled
