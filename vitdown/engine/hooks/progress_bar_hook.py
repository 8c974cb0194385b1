import sys
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from tqdm import tqdm

from vitdown.registry import HOOKS


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """One progress bar over the whole training, with losses and validation results.

    On a terminal the bar is redrawn in place; elsewhere a line is printed now and then. Meant for
    ``log_level='WARNING'``, which keeps the runner's own log off the screen.

    Args:
        metrics (Sequence[str]): Validation metrics to show. Defaults to mAP and CMC@1.
        lines (int): Number of lines where there is no terminal. Defaults to 10.
    """

    priority = 'LOW'

    def __init__(
        self, metrics: tuple[str, ...] = ('reid/mAP', 'reid/CMC@1'), lines: int = 10
    ) -> None:
        self.metrics = metrics
        self.lines = lines
        self._bar: tqdm | None = None

    def before_train(self, runner: Runner) -> None:
        if not is_main_process():
            return
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=runner.max_epochs,
            initial=runner.epoch,
            unit='epoch',
            desc='Training',
            disable=not terminal,
            bar_format='{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}',
        )
        self._step = max(1, runner.max_epochs // self.lines)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if self._bar is None or self._bar.disable:
            return
        self._bar.set_postfix_str(self._losses(runner), refresh=False)
        self._bar.update(1 / len(runner.train_dataloader))

    def after_train_epoch(self, runner: Runner) -> None:
        done = runner.epoch + 1
        if self._bar is None or not self._bar.disable:
            return
        if done % self._step == 0 or done == runner.max_epochs:
            text = f'Training: epoch {done} of {runner.max_epochs}, {self._losses(runner)}'
            print(text, flush=True)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if self._bar is None or not metrics:
            return
        shown = ', '.join(
            f'{name.split("/")[-1]} {metrics[name]:.1f} %'
            for name in self.metrics
            if name in metrics
        )
        self._bar.write(f'After epoch {runner.epoch}: {shown}')

    def after_train(self, runner: Runner) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    @staticmethod
    def _losses(runner: Runner) -> str:
        scalars = runner.message_hub.log_scalars
        names = {
            'train/loss': 'loss',
            'train/accuracy': 'accuracy',
            'train/sa_accuracy': 'accuracy',
        }
        return ', '.join(
            f'{label} {scalars[name].mean(20):.2f}'
            for name, label in names.items()
            if name in scalars
        )
