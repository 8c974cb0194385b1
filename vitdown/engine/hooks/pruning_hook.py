import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import barrier, broadcast_object_list, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import Runner
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.utils.hooks import RemovableHandle

from vitdown.datasets.transforms import check_key_sources
from vitdown.models.option_checks import check_integers
from vitdown.models.pruning import (
    GlobalPruner,
    LatencyTable,
    MultiplyAdds,
    Parameters,
    ViTStructure,
    check_ln_mode,
    device_name,
    export_dense,
    save_dense,
)
from vitdown.registry import HOOKS
from vitdown.visualization import draw_pruning_report, format_pruning_report

from ..launch import load_config
from .attached_module import unwrap
from .distillation_hook import DistillationHook

COSTS = ('latency', 'macs', 'params')


@HOOKS.register_module()
class PruningHook(Hook):
    """Prune a plain ViT while it trains, with one ranking over the whole network (NViT).

    Global pruning with a Hessian-aware saliency (arXiv 2110.04869). Works on any model with a
    :class:`VisionTransformer` or :class:`NViT` as ``backbone`` and a head that
    :func:`vitdown.models.pruning.embed_axes` knows, under any loss. Scores are taken within the
    optimizer's step, where gradients are unscaled and weights new; every ``interval`` steps a
    pruning event masks the units of the lowest score, until the cost of the blocks has come down
    to the last of ``targets``. At each target the dense model is written to
    ``<work_dir>/pruned_<target>.pth`` with a config beside it, and a report (``.md``, ``.png``).

    The weights' moving average of an :class:`EMAHook` is masked, too; dense models are made of the
    weights themselves. The state is part of checkpoints, so a run resumes where it was killed. All
    processes of a distributed run prune alike. A checkpoint that was pruned is gone on with by the
    same cost and table alone.

    Args:
        targets (float | Sequence[float]): Costs to reach, as shares of the full model's, falling.
        cost (str): What costs: ``'latency'`` by ``latency_table``, ``'macs'`` or ``'params'``.
            Counted are the blocks, which alone become smaller at different rates.
        latency_table (str, optional): File that ``tools/pruning/measure_latency.py`` wrote, for
            ``cost='latency'``.
        cost_weight (float): Weight of the cost against the saliency. Defaults to 4.85e-4, the
            authors' balance.
        normalize_cost (bool): Whether the cost is divided by the full model's. False with a table
            in seconds is the authors' form, whose weight (5e-4) belongs to one machine.
        interval (int): Steps between events. Defaults to 100.
        max_drop (float, optional): Most that one event takes off the cost, as a share of the full
            model's, give or take a group: the rank of the threshold counts groups that are gone,
            which can let many go at once, of small models most. Events stop at targets likewise,
            whose overshoot is that of the last group: one of n groups of the whole embedding
            takes about 1/n of the cost with it (10 points and more of a small model).
            None for no bounds, as in the authors' code. Defaults to 0.1.
        group_sizes (Mapping[str, int], optional): See :class:`GlobalPruner`.
        structures (Sequence[str]): What to prune: ``'emb'``, ``'head'``, ``'qk'``, ``'v'``,
            ``'mlp'``.
        switch_to_eval (bool): Whether the backbone runs in evaluation mode (without drop path and
            dropout) from the first event on, as in the authors' recipe. Defaults to False.
        export (bool): Whether to write dense models. Defaults to True.
        ln_mode (str): See :func:`vitdown.models.pruning.dense_model_cfg`.
        recipe (str | Mapping, optional): Config, or path of one, that dense models are to be
            fine-tuned with, see :func:`vitdown.models.pruning.save_dense`. Defaults to the config
            that prunes, without pruning.
        losses_from_first_event (Sequence[str]): Names of distillation losses that training lacks
            before the first event, for which their :class:`DistillationHook` waits.
        stop (bool): Whether training ends, with its epoch, at the last target. Defaults to True.
        **pruner: Other arguments of :class:`GlobalPruner` (``prune_per_event``, ``rank_unit``,
            ``max_units``, ``momentum``, ``momentum_reset``, ``bias_correction``, ``saliency``,
            ``norm``, ``count_pruned``, ``seed``, which is the run's by default).
    """

    # After hooks that change weights or gradients, before checkpoints are written
    priority = 'BELOW_NORMAL'

    def __init__(
        self,
        targets: float | Sequence[float] = 0.5,
        cost: str = 'latency',
        latency_table: str | None = None,
        cost_weight: float = 4.85e-4,
        normalize_cost: bool = True,
        interval: int = 100,
        max_drop: float | None = 0.1,
        group_sizes: Mapping[str, int] | None = None,
        structures: Sequence[str] = ('emb', 'head', 'qk', 'v', 'mlp'),
        switch_to_eval: bool = False,
        export: bool = True,
        ln_mode: str = 'dense',
        recipe: str | Mapping | None = None,
        losses_from_first_event: Sequence[str] = (),
        stop: bool = True,
        **pruner: Any,
    ) -> None:
        if isinstance(targets, Sequence) and not isinstance(targets, str):
            targets = list(targets)
        else:
            targets = [targets]
        if not targets or any(
            not isinstance(target, (int, float)) or not 0 < target < 1 for target in targets
        ):
            raise ValueError(f'targets must lie between 0 and 1, got {targets}')
        if targets != sorted(targets, reverse=True):
            raise ValueError(f'targets must fall, got {targets}')
        if cost not in COSTS:
            raise ValueError(f'cost must be one of {COSTS}, got {cost!r}')
        if (cost == 'latency') != (latency_table is not None):
            raise ValueError(
                f'cost={cost!r} with latency_table={latency_table!r}: give a table, measured by '
                "tools/pruning/measure_latency.py, with cost='latency' alone"
            )
        check_integers('interval', interval, 1)
        if max_drop is not None and not (isinstance(max_drop, (int, float)) and 0 < max_drop <= 1):
            raise ValueError(f'max_drop must lie between 0 and 1, got {max_drop!r}')
        if ln_mode not in ('dense', 'exact'):
            raise ValueError(f"ln_mode must be 'dense' or 'exact', got {ln_mode!r}")
        self.targets = targets
        self.cost = cost
        self.latency_table = latency_table
        self.interval = interval
        self.max_drop = max_drop
        self.switch_to_eval = switch_to_eval
        self.export = export
        self.ln_mode = ln_mode
        self.recipe = recipe
        self.losses_from_first_event = tuple(losses_from_first_event)
        self.stop = stop
        self.pruner_options = dict(
            cost_weight=cost_weight,
            normalize_cost=normalize_cost,
            group_sizes=group_sizes,
            kinds=structures,
            **pruner,
        )
        self.pruner: GlobalPruner | None = None
        self._steps = 0
        # The pruner's cost ratio, which events alone change: every step asks for it
        self._ratio = 1.0
        self._state: dict | None = None
        self._handle: RemovableHandle | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._state = checkpoint.get('pruning')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.pruner is not None:
            checkpoint['pruning'] = dict(
                pruner=self.pruner.state_dict(), steps=self._steps, cost=self._counted
            )

    def before_train(self, runner: Runner) -> None:
        """Build the pruner, go on from a checkpoint's state, and step behind the optimizer.

        Raises:
            ValueError: If optimizer or model cannot be pruned with, a loss that is to wait for
                the first event is none, or the checkpoint was pruned by another cost or below a
                target without a model.
        """
        self.pruner = self.build_pruner(runner)
        if self._state is not None:
            self._check_cost(self._state.get('cost', self._counted))
            self.pruner.load_state_dict(self._state['pruner'])
            self._steps = self._state['steps']
            self._check_passed_targets(runner)
        self._ratio = self.pruner.cost_ratio
        if isinstance(self.recipe, str):
            recipe = load_config(self.recipe)
            check_key_sources(recipe.to_dict())  # it is written beside the dense model
            self.recipe = recipe
        elif isinstance(self.recipe, Mapping):
            self.recipe = Config(dict(self.recipe))
        if self.export:
            self._check_export(runner)
        self._waiting = self._waiting_hooks(runner)
        self._runner = runner
        self._handle = _plain_optimizer(runner).register_step_post_hook(self._after_step)
        self._stop_if_done()

    def build_pruner(self, runner: Runner) -> GlobalPruner:
        """The pruner of a runner's model.

        Raises:
            ValueError: If the last target cannot be reached.
        """
        model = unwrap(runner.model)
        ViTStructure(model, embedding=False)  # says what is wrong with other models
        check_ln_mode(self.ln_mode, model.backbone, 'emb' in self.pruner_options['kinds'])
        options = {'seed': runner.seed, **self.pruner_options}
        cost, self._counted = self._block_cost(runner)
        pruner = GlobalPruner(model, cost, **options)
        least = pruner.least_cost_ratio
        if least > self.targets[-1]:
            raise ValueError(
                f'The target of {100 * self.targets[-1]:g} % of the {self.cost} cannot be reached: '
                f'with one group left in every layer it is {100 * least:.1f} %. Raise the target, '
                'prune more structures, or measure the latency at a larger batch size'
            )
        return pruner

    def _block_cost(self, runner: Runner) -> tuple[Parameters | MultiplyAdds | LatencyTable, str]:
        """The cost of a block, and what is counted, in words that tell it from other costs."""
        if self.cost == 'params':
            return Parameters(), 'params'
        num_tokens = unwrap(runner.model).backbone.pos_embed.shape[1]
        if self.cost == 'macs':
            return MultiplyAdds(num_tokens), f'macs of {num_tokens} tokens'
        table = LatencyTable.load(self.latency_table)
        measured = table.info.get('num_tokens', num_tokens)
        if measured != num_tokens:
            raise ValueError(
                f'The latency table {self.latency_table} was measured with {measured} tokens, the '
                f'model has {num_tokens}; measure one for this config'
            )
        print_log(
            f'Latency as measured on {table.info.get("device", "an unknown device")}, '
            f'{table.info.get("dtype")}, batch {table.info.get("batch_size")}',
            logger='current',
        )
        _compare_machines(table, runner)
        return table, f'latency by the table {table.fingerprint()}'

    def _check_cost(self, counted: str) -> None:
        if counted != self._counted:
            raise ValueError(
                f'The checkpoint was pruned by its {counted}, this run counts {self._counted}: go '
                'on with the same cost and table, or make a dense model of the checkpoint '
                '(tools/pruning/export_pruned.py) and prune that'
            )

    def _check_export(self, runner: Runner) -> None:
        """Build a dense model before training, rather than fail at the first target."""
        recipe_model = getattr(self.recipe, 'model', None) or {}
        if self.recipe is not None and 'backbone' not in recipe_model:
            raise ValueError('recipe must be a config with a model and its backbone')
        pruner = self.pruner
        gates = [gate.clone() for gate in pruner.gates]
        for layer, gate in zip(pruner.layers, gates):
            if layer.kind in pruner.kinds:
                gate[gate.nonzero()[pruner.group_sizes[layer.kind] :]] = False
        try:
            with torch.random.fork_rng(devices=[]):
                export_dense(runner.cfg.model, pruner.model, pruner.structure, gates, self.ln_mode)
        except RuntimeError as error:
            raise ValueError(
                f'The dense model of this config cannot take the weights: {error}. Leave sizes of '
                'layers to arch, or set export=False'
            ) from None

    def _check_passed_targets(self, runner: Runner) -> None:
        """Refuse targets that are behind the checkpoint and have no model in the work dir."""
        ratio, suffix = self.pruner.cost_ratio, '.pth' if self.export else '.md'
        missing = [
            target
            for target in self.targets
            if ratio <= target
            and not (Path(runner.work_dir) / f'pruned_{target:g}{suffix}').exists()
        ]
        found = [missing]
        broadcast_object_list(found)  # the first process writes models
        if found[0]:
            raise ValueError(
                f'The checkpoint is at {100 * ratio:.1f} % of the {self.cost} already, below the '
                f'target of {100 * found[0][0]:g} %, and {runner.work_dir} has no model of that '
                'target: lower or drop it, or make a dense model of the checkpoint '
                '(tools/pruning/export_pruned.py)'
            )

    def _waiting_hooks(self, runner: Runner) -> list[DistillationHook]:
        hooks = {
            name: hook
            for hook in runner.hooks
            if isinstance(hook, DistillationHook)
            for name in hook.losses
        }
        wrong = [name for name in self.losses_from_first_event if name not in hooks]
        if wrong:
            raise ValueError(
                f'losses_from_first_event: no DistillationHook has a loss {wrong[0]!r}; there are '
                f'{", ".join(hooks) or "none"}'
            )
        return [hooks[name] for name in self.losses_from_first_event]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        for hook in self._waiting:
            hook.waiting = not self.pruner.num_events
        if self.switch_to_eval and self.pruner.num_events:
            unwrap(runner.model).backbone.eval()

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        self.pruner.apply_masks()
        if self.done:
            return
        self.pruner.accumulate()
        if self._steps and self._steps % self.interval == 0:
            self._event()
        self._steps += 1

    @property
    def done(self) -> bool:
        """Whether the last target is reached."""
        return self._ratio <= self.targets[-1]

    def _event(self) -> None:
        before = self._ratio
        entry = self.pruner.event(self._next_bound(before))
        self._mask_average()
        self._ratio = after = entry['cost_ratio']
        print_log(
            f'Pruning event {entry["event"]}: {self.cost} of the blocks {100 * after:.1f} % of the '
            'full model',
            logger='current',
        )
        self._runner.message_hub.update_scalar('train/pruned_cost', after)
        for target in self.targets:
            if after <= target < before:
                self._snapshot(target)
        self._stop_if_done()

    def _next_bound(self, ratio: float) -> float:
        """The cost that the next event goes down to at most."""
        if self.max_drop is None:
            return 0.0
        target = max((t for t in self.targets if t < ratio), default=0.0)
        return max(ratio - self.max_drop, target)

    def _mask_average(self) -> None:
        for hook in self._runner.hooks:
            if isinstance(hook, EMAHook):
                self.pruner.mask_copy(unwrap(hook.ema_model.module))

    def _stop_if_done(self) -> None:
        if self.done and self.stop:
            self._runner.train_loop.stop_training = True

    def _snapshot(self, target: float) -> None:
        runner, pruner = self._runner, self.pruner
        if is_main_process():
            path = Path(runner.work_dir) / f'pruned_{target:g}.pth'
            report = format_pruning_report(
                pruner.structure, pruner.gates, self.cost, pruner.history
            )
            path.with_suffix('.md').write_text(report)
            draw_pruning_report(pruner.structure, pruner.gates, path.with_suffix('.png'))
            print_log(report, logger='current')
            if self.export:
                meta = dict(
                    cost=self.cost,
                    target=target,
                    cost_ratio=pruner.cost_ratio,
                    steps=self._steps + 1,
                )
                config = save_dense(
                    runner.cfg,
                    pruner.model,
                    pruner.structure,
                    pruner.gates,
                    path,
                    self.ln_mode,
                    meta,
                    self.recipe,
                )
                print_log(f'Dense model: {path}, config: {config}', logger='current')
        barrier()

    def after_train(self, runner: Runner) -> None:
        self._handle.remove()
        if not self.done:
            runner.logger.warning(
                f'Training ended with the {self.cost} of the blocks at '
                f'{100 * self.pruner.cost_ratio:.1f} %, above the target of '
                f'{100 * self.targets[-1]:g} %, after {self.pruner.num_events} pruning events; '
                'train longer, or prune more often (interval) or more (prune_per_event)'
            )


def _compare_machines(table: LatencyTable, runner: Runner) -> None:
    """Warn if a table was measured on another device, or in another precision, than the run's."""
    weight = unwrap(runner.model).backbone.pos_embed
    dtype = weight.dtype
    if isinstance(runner.optim_wrapper, AmpOptimWrapper):
        dtype = runner.optim_wrapper.cast_dtype or torch.float16
    here = (device_name(weight.device), str(dtype).removeprefix('torch.'))
    there = (table.info.get('device', here[0]), table.info.get('dtype', here[1]))
    if there != here:
        print_log(
            f'The latency table was measured on {", ".join(there)}, this run is on '
            f'{", ".join(here)}; that is right if the pruned model is to run on the former, else '
            'measure a table here',
            logger='current',
            level=logging.WARNING,
        )


def _plain_optimizer(runner: Runner) -> torch.optim.Optimizer:
    wrapper = runner.optim_wrapper
    if not isinstance(wrapper, OptimWrapper):
        raise ValueError('Pruning follows one optimizer; optim_wrapper has several')
    if isinstance(wrapper.optimizer, ZeroRedundancyOptimizer) or 'FullyShardedDataParallel' in str(
        type(runner.model)
    ):
        raise ValueError(
            'Pruning needs whole weights on every process, which FSDP and ZeRO shard; '
            'use MMDistributedDataParallel'
        )
    # Such an optimizer also gets the steps that overflow, with gradients that are still scaled.
    if isinstance(wrapper, AmpOptimWrapper) and getattr(
        wrapper.optimizer, '_step_supports_amp_scaling', False
    ):
        raise ValueError(
            'Pruning scores gradients, which a fused optimizer leaves multiplied by the loss scale '
            'of mixed precision; set fused=False in the optimizer'
        )
    return wrapper.optimizer
