import math
from typing import Any

from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from torch.optim import Optimizer

from vitdown.registry import PARAM_SCHEDULERS


def warmup_cosine(
    step: int, base: float, max_steps: int, warmup_steps: int, warmup_start: float, minimum: float
) -> float:
    """Learning rate of step ``1 <= step <= max_steps``: linear warm-up, then cosine.

    TransReID's schedule: the warm-up ends at ``base`` in step ``warmup_steps``, where the cosine,
    which is not shifted by the warm-up, takes over; the last step runs at ``minimum``.

    Args:
        step (int): Step (epoch), counted from 1.
        base (float): Peak learning rate.
        max_steps (int): Number of steps.
        warmup_steps (int): Length of the warm-up; 0 for none.
        warmup_start (float): Value the warm-up starts from (at step 0).
        minimum (float): Lower end of the cosine.
    """
    if step < warmup_steps:
        return warmup_start + step * (base - warmup_start) / warmup_steps
    if step >= max_steps:
        return minimum
    return minimum + 0.5 * (base - minimum) * (1 + math.cos(math.pi * step / max_steps))


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(_ParamScheduler):
    """Warm-up and cosine of TransReID's and Swin's recipes, see :func:`warmup_cosine`.

    One step an epoch, or an iteration with ``convert_to_iter_based=True`` in the config.

    Start and end of the schedule are ratios of the optimizer's base learning rate for *all*
    parameter groups, also for those with a multiplier (biases).

    Args:
        optimizer (Optimizer | OptimWrapper): Wrapped optimizer.
        end (int): Number of epochs of the schedule. MMEngine's runner fills in
            ``train_cfg.max_epochs``.
        warmup_epochs (int): Length of the warm-up. Defaults to 5.
        warmup_start_ratio (float): Defaults to 0.01.
        min_lr_ratio (float): Defaults to 0.002.
        base_lr (float, optional): What the ratios refer to. Defaults to the optimizer's ``lr``
            (before ``auto_scale_lr``).
        last_step (int): Index of the last step, for resuming without a state dict.
        by_epoch (bool): Whether ``end`` and ``warmup_epochs`` count epochs; iterations if False.
            Defaults to True.
        verbose (bool): Print each update.

    Raises:
        ValueError: If the warm-up is longer than the schedule.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        end: int,
        warmup_epochs: int = 5,
        warmup_start_ratio: float = 0.01,
        min_lr_ratio: float = 0.002,
        base_lr: float | None = None,
        last_step: int = -1,
        by_epoch: bool = True,
        verbose: bool = False,
    ) -> None:
        if not 0 <= warmup_epochs < end:
            raise ValueError(
                f'warmup_epochs={warmup_epochs} must be below the {end} epochs of training; set '
                'param_scheduler.warmup_epochs'
            )
        if base_lr is None:
            base_lr = getattr(optimizer, 'optimizer', optimizer).defaults['lr']
        self.warmup_epochs = warmup_epochs
        self.warmup_start = warmup_start_ratio * base_lr
        self.minimum = min_lr_ratio * base_lr
        super().__init__(
            optimizer, 'lr', end=end, last_step=last_step, by_epoch=by_epoch, verbose=verbose
        )

    @classmethod
    def build_iter_from_epoch(
        cls,
        optimizer: Optimizer,
        end: int,
        epoch_length: int,
        warmup_epochs: int = 5,
        by_epoch: bool = True,
        **kwargs: Any,
    ) -> 'WarmupCosineLR':
        """The same schedule, with a step an iteration, of ``epoch_length`` iterations an epoch."""
        return cls(
            optimizer,
            end=end * epoch_length,
            warmup_epochs=warmup_epochs * epoch_length,
            by_epoch=False,
            **kwargs,
        )

    def _get_value(self) -> list[float]:
        return [
            warmup_cosine(
                self.last_step + 1,
                base,
                self.end,
                self.warmup_epochs,
                self.warmup_start,
                self.minimum,
            )
            for base in self.base_values
        ]
