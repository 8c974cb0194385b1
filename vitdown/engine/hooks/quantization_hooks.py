from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch.optim import Optimizer

from vitdown.models.option_checks import check_integers
from vitdown.models.quantization import (
    ConfidenceGuidedAnnealing,
    OscillationMonitor,
    quantizers_of,
)
from vitdown.registry import HOOKS

from .attached_module import unwrap


def single_optimizer(runner: Runner, hook: Hook) -> Optimizer:
    """The optimizer of a run.

    Raises:
        ValueError: If there are several.
    """
    if not isinstance(runner.optim_wrapper, OptimWrapper):
        raise ValueError(f'{type(hook).__name__} works with one optimizer, not with several')
    return runner.optim_wrapper.optimizer


@HOOKS.register_module()
class QuantCalibrationHook(Hook):
    """Sets the steps of quantizers before a training, by its first batches.

    The model sees them in evaluation mode and without gradients. Steps that come from a checkpoint
    stay as they are. Without this hook the first batch of the training sets the steps, too, but in
    training mode.

    Args:
        num_batches (int): Batches to average over, or as many as there are. Defaults to 1, as in
            OFQ's official code.
    """

    def __init__(self, num_batches: int = 1) -> None:
        check_integers('num_batches', num_batches, low=1)
        self.num_batches = num_batches

    @torch.no_grad()
    def before_train(self, runner: Runner) -> None:
        model = unwrap(runner.model)
        quantizers = [q for q in quantizers_of(model) if not q.is_initialized]
        if not quantizers:
            return
        sums = [torch.zeros_like(quantizer.step) for quantizer in quantizers]
        training = model.training
        model.eval()
        seen = 0
        for batch in islice(runner.train_dataloader, self.num_batches):
            for quantizer in quantizers:
                quantizer.reset()
            data = model.data_preprocessor(batch, training=True)
            model(**data, mode='tensor')
            for total, quantizer in zip(sums, quantizers):
                total += quantizer.step
            seen += 1
        for total, quantizer in zip(sums, quantizers):
            quantizer.step.copy_(total / seen)
        model.train(training)
        runner.logger.info(f'{len(quantizers)} quantizers calibrated by {seen} batches')


@HOOKS.register_module()
class CGAHook(Hook):
    """Confidence-guided annealing, the second stage of OFQ (arXiv 2302.02210, Sec. 4.3).

    See :class:`ConfidenceGuidedAnnealing`. Works with mixed precision, gradient accumulation and
    clipping.

    Args:
        boundary_range (float): Half-width of the band in which weights train, in levels. Defaults
            to 0.005.
        cga_on_qk (str): ``'none'`` or ``'grad'``, see ``on_qk`` there. Defaults to ``'none'``.
        targets (Sequence[str], optional): Patterns of the names of layers, or of modules around
            them, that it acts on, e.g. ``['*.ffn']``. Defaults to all in the blocks.
    """

    def __init__(
        self,
        boundary_range: float = 0.005,
        cga_on_qk: str = 'none',
        targets: Sequence[str] | None = None,
    ) -> None:
        self.boundary_range = boundary_range
        self.cga_on_qk = cga_on_qk
        self.targets = targets

    def before_train(self, runner: Runner) -> None:
        optimizer = single_optimizer(runner, self)
        self._annealing = ConfidenceGuidedAnnealing(
            unwrap(runner.model), self.boundary_range, self.cga_on_qk, self.targets
        )
        self._annealing.attach(optimizer)

    def after_train(self, runner: Runner) -> None:
        self._annealing.detach()


@HOOKS.register_module()
class OscillationHook(Hook):
    """Logs how many low-bit weights oscillate, as ``osc/frac`` and others.

    See :meth:`OscillationMonitor.summary`. Codes are observed after iterations with a step of the
    optimizer, not after those that only accumulate gradients. What was observed is part of
    checkpoints (:meth:`OscillationMonitor.state_dict`), and a resumed run goes on from there.

    Args:
        momentum (float): See :class:`OscillationTracker`. Defaults to 0.01.
        threshold (float): See :class:`OscillationMonitor`. Defaults to 0.005.
        boundary_range (float): See :class:`OscillationMonitor`. Defaults to 0.005.
        interval (int): Observe every so many steps. Defaults to 1.
        log_interval (int): Log every so many iterations. Defaults to 50.
        per_layer (bool): Log each weight besides the total. Defaults to False.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        momentum: float = 0.01,
        threshold: float = 0.005,
        boundary_range: float = 0.005,
        interval: int = 1,
        log_interval: int = 50,
        per_layer: bool = False,
    ) -> None:
        check_integers('interval', interval, low=1)
        check_integers('log_interval', log_interval, low=1)
        self.options = dict(momentum=momentum, threshold=threshold, boundary_range=boundary_range)
        self.interval = interval
        self.log_interval = log_interval
        self.per_layer = per_layer
        self.monitor: OscillationMonitor | None = None
        self._state: dict | None = None

    def before_train(self, runner: Runner) -> None:
        optimizer = single_optimizer(runner, self)
        self.monitor = OscillationMonitor(unwrap(runner.model), **self.options)
        # Steps since the last observation
        self._steps = 0
        if self._state is None:
            self.monitor.update()
        else:
            self.monitor.load_state_dict(self._state['weights'])
            self._steps = self._state['steps']
        self._handle = optimizer.register_step_post_hook(self._count)

    def _count(self, *_: Any) -> None:
        self._steps += 1

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Sequence | None = None,
        outputs: dict | None = None,
    ) -> None:
        # Not within the step: CGAHook still puts weights back there
        if self._steps >= self.interval:
            self._steps = 0
            self.monitor.update()
        if not self.every_n_train_iters(runner, self.log_interval):
            return
        for name, shares in self.monitor.summary().items():
            if name == 'total' or self.per_layer:
                prefix = 'osc' if name == 'total' else f'osc/{name}'
                for key, share in shares.items():
                    runner.message_hub.update_scalar(f'train/{prefix}/{key}', share)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.monitor is not None:
            checkpoint['oscillation'] = dict(weights=self.monitor.state_dict(), steps=self._steps)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume:
            self._state = checkpoint.get('oscillation')

    def after_train(self, runner: Runner) -> None:
        self._handle.remove()
