from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitdown.registry import MODELS


@MODELS.register_module()
class UncertaintyWeightedLoss(nn.Module):
    """Sum of several tasks' losses with learnt weights.

    ``total = 0.5 * sum_k(exp(-w_k) * loss_k + w_k)``: homoscedastic uncertainty (Kendall et al.,
    arXiv 1705.07115) in the form of FairMOT (arXiv 2004.01888), as DCAL balances its branches
    (arXiv 2205.02151, Sec. 3.4). The minimum over ``w_k`` is ``ln(loss_k)``: where a loss goes
    to 0 its weight grows without bound and the total goes below 0, unless ``w_min`` stops it.
    The weights want no weight decay.

    Args:
        tasks (Sequence[str]): Names of the tasks.
        init (float | Sequence[float]): Initial ``w`` of all tasks or of each. Defaults to 0.
        w_min (float, optional): Lower bound of the ``w`` that are used. Defaults to None.

    Raises:
        ValueError: If ``init`` or ``w_min`` are no numbers, or ``init`` has one too many or few.

    Examples:
        >>> weighting = UncertaintyWeightedLoss(['sa', 'glca'])
        >>> total, logs = weighting(dict(sa=torch.tensor(2.0), glca=torch.tensor(4.0)))
        >>> total.item()
        3.0
    """

    def __init__(
        self,
        tasks: Sequence[str],
        init: float | Sequence[float] = 0.0,
        w_min: float | None = None,
    ) -> None:
        super().__init__()
        values = list(init) if isinstance(init, Sequence) else [init] * len(tasks)
        numbers = [*values, *([] if w_min is None else [w_min])]
        if not all(type(value) in (int, float) for value in numbers):
            raise ValueError(f'init and w_min must be numbers, got {init!r} and {w_min!r}')
        if len(values) != len(tasks):
            raise ValueError(f'init has {len(values)} values for the tasks {list(tasks)}')
        self.w_min = w_min
        self.tasks = tuple(tasks)
        # Of pairs: it would sort a dict.
        self.log_vars = nn.ParameterDict(
            [(task, nn.Parameter(torch.tensor(float(w)))) for task, w in zip(tasks, values)]
        )

    @property
    def optional_state(self) -> tuple[str, ...]:
        """Weights that a checkpoint may lack: only training goes on from them."""
        return tuple(f'log_vars.{task}' for task in self.tasks)

    def forward(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh losses, in float32.

        Args:
            losses (dict[str, Tensor]): Scalar loss of each task, or of some of them.

        Returns:
            tuple: Total loss and the current ``w`` by task, detached.
        """
        unknown = set(losses) - set(self.tasks)
        if unknown or not losses:
            raise ValueError(f'Losses of {sorted(losses)} given; tasks are {list(self.tasks)}')
        names = [task for task in self.tasks if task in losses]
        w = torch.stack([self.log_vars[name] for name in names])
        values = torch.stack([losses[name].to(w.dtype) for name in names])
        if self.w_min is not None:
            w = self._bounded(w, values)
        total = 0.5 * ((-w).exp() * values + w).sum()
        return total, dict(zip(names, w.detach().clone()))

    def _bounded(self, w: Tensor, losses: Tensor) -> Tensor:
        """``w`` or its bound; below it, gradients pass only if they lift ``w`` again."""
        bounded = w.clamp(min=self.w_min)
        rises = (-bounded.detach()).exp() * losses.detach() > 1
        return torch.where(rises, w + (bounded - w).detach(), bounded)
