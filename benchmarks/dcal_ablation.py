"""DCAL against its baseline: what each branch adds, on small data, with a small model.

    export VITDOWN_DATA=FOLDER  # holds omniglot/, nyala/, flowers17/; writable
    python -m benchmarks.dcal_ablation --sets synthetic omniglot --seeds 0 1 2

All variants of a set share model, images, epochs and schedule, all in ``SETS``; not the time, since
a step with PWCA costs more than twice as much. Every finished training is kept in the work dir and
not run again while its config stays the same, so that a run that was interrupted goes on, and the
table of what is there comes at the end. Models with GLCA are tested with each branch alone, too;
``w`` are the learnt weights of the branches' losses, which start at 0.
"""

import argparse
import re
import statistics
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmengine.config import Config

from benchmarks.evidence import fingerprint, read_result, write_result
from benchmarks.train_table import print_table, spread
from vitdown.engine.launch import ConfigError, build_runner, load_config, run_tool

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
ARCH = dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384)


@dataclass(frozen=True)
class Setting:
    """What the variants of one set share.

    Attributes:
        baseline: Config of the baseline, below ``configs``.
        dcal: Config of DCAL.
        size: Images, ``(H, W)`` in pixels; None as in the configs.
        patch: Side of a patch in pixels.
        epochs: Of training; a fifth of them warm up.
        metrics: Columns of the table.
    """

    baseline: str
    dcal: str
    size: tuple[int, int] | None
    patch: int
    epochs: int
    metrics: tuple[str, ...] = ('reid/mAP', 'reid/CMC@1')

    @classmethod
    def reid(cls, name: str, size: tuple[int, int], patch: int, epochs: int) -> 'Setting':
        files = f'reid/vit-mini_1xb64-40e_{name}', f'dcal/dcal_vit-mini_1xb64-40e_{name}'
        return cls(*files, size, patch, epochs)


SETS = {
    'omniglot': Setting.reid('omniglot-64x64', (48, 48), 8, 8),
    'synthetic': Setting.reid('synthetic-128x64', (96, 48), 8, 16),
    'nyala': Setting.reid('nyala-128x160', (96, 128), 16, 10),
    'flowers17': Setting(
        'dcal/vit-mini_1xb64-40e_flowers17-96x96',
        'dcal/dcal_vit-mini_1xb64-40e_flowers17-96x96',
        None,
        12,
        12,
        ('accuracy/top1', 'accuracy/top5'),
    ),
}
#: Options of DCAL's head; None is the baseline's.
VARIANTS = {
    'baseline': None,
    '+GLCA': dict(pwca=None),
    '+PWCA': dict(glca=None),
    'DCAL': dict(),
    "DCAL, pool='mean'": dict(glca=dict(pool='mean')),
    "DCAL, input='penultimate'": dict(glca=dict(input='penultimate')),
}
MAIN_VARIANTS = tuple(VARIANTS)[:4]
#: Parts of a model with GLCA, as rows of the table call them.
BRANCHES = {'sa': 'SA alone', 'glca': 'GLCA alone'}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sets', nargs='+', choices=SETS, default=list(SETS))
    parser.add_argument('--variants', nargs='+', choices=VARIANTS, default=list(MAIN_VARIANTS))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--epochs', type=int, help="default: each set's own")
    parser.add_argument('--work-dir', default='work_dirs/dcal_ablation')
    parser.add_argument(
        '--minutes', type=float, help='start no training after this time; run again to go on'
    )
    return parser.parse_args()


def configure(name: str, variant: str, seed: int, epochs: int, work_dir: str) -> Config:
    """Config of one training."""
    setting, options = SETS[name], VARIANTS[variant]
    file = setting.baseline if options is None else setting.dcal
    cfg = load_config(str(CONFIGS / f'{file}.py'), work_dir=work_dir)
    backbone, head = cfg.model.backbone, cfg.model.head
    backbone.arch = dict(ARCH)
    backbone.patch_size = setting.patch
    if setting.size is not None:
        backbone.img_size = setting.size
    head.in_channels = ARCH['embed_dims']
    if options is not None:
        for part, values in options.items():
            head[part] = None if values is None else {**head[part], **values}
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.num_workers = 1
        if setting.size is not None:
            resize(loader.dataset.pipeline, setting.size)
    cfg.randomness.seed = seed
    cfg.train_cfg.max_epochs = epochs
    cfg.param_scheduler.warmup_epochs = epochs // 5
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = None
    cfg.log_level = 'ERROR'
    return cfg


def resize(pipeline: list[dict], size: tuple[int, int]) -> None:
    """Change the size of a pipeline's images, in place."""
    for step in pipeline:
        if 'scale' in step:
            step.scale = size[::-1]
        if 'crop_size' in step:
            step.crop_size = size


@dataclass(frozen=True)
class Training:
    """One training: of a set and a variant, with a seed."""

    name: str
    variant: str
    seed: int
    epochs: int
    work_dir: str

    def configure(self) -> Config:
        return configure(self.name, self.variant, self.seed, self.epochs, self.work_dir)

    @cached_property
    def config(self) -> str:
        """Fingerprint of its config."""
        return fingerprint(self.configure())

    @property
    def label(self) -> str:
        return f'{self.name}, {self.variant}, {self.epochs} epochs, seed {self.seed}'

    @property
    def result(self) -> Path:
        """File of what it is worth."""
        name = re.sub(r'[^\w+.]+', '-', self.label.replace("'", ''))
        return Path(self.work_dir) / f'{name}.json'

    def run(self) -> dict[str, dict]:
        """Train and test, each branch alone too. Metrics of each row of the table."""
        began = time.monotonic()
        runner = build_runner(self.configure())
        runner.train()
        metrics = {**runner.test(), 'seconds': round(time.monotonic() - began, 1)}
        head = runner.model.head
        if getattr(head, 'loss_weighting', None) is not None:
            weights = head.loss_weighting.log_vars.items()
            metrics.update({f'w/{task}': round(w.item(), 4) for task, w in weights})
        rows = {self.variant: metrics}
        if getattr(head, 'glca', None) is not None:
            for branch, part in BRANCHES.items():
                head.infer_branch = branch
                rows[f'{self.variant}: {part}'] = runner.test()
        return rows


def table(trainings: list[Training]) -> None:
    """Print one table of all sets: mean and spread over the seeds that are there."""
    cells: dict[tuple, list[dict]] = {}
    for training in trainings:
        found = read_result(training.result, training.config) or {}
        for row, metrics in found.items():
            cells.setdefault((training.name, row, training.epochs), []).append(metrics)
    rows = []
    for (name, row, epochs), runs in cells.items():
        metrics = [spread([run[metric] for run in runs]) for metric in SETS[name].metrics]
        tasks = [key for key in runs[0] if key.startswith('w/') and all(key in run for run in runs)]
        weights = (f'{key[2:]} {statistics.mean(run[key] for run in runs):.2f}' for key in tasks)
        rows.append([name, row, str(epochs), str(len(runs)), *metrics, ', '.join(weights) or '-'])
    columns = [
        ' or '.join(dict.fromkeys(setting.metrics[i].split('/')[-1] for setting in SETS.values()))
        for i in range(2)
    ]
    print_table(['set', 'model', 'epochs', 'seeds', *columns, 'w'], rows)


def main() -> None:
    args = parse_args()
    if args.epochs is not None and args.epochs < 2:
        raise ConfigError(f'--epochs must be at least 2, got {args.epochs}')
    work_dir = Path(args.work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    # All sets and variants with one seed before the next seed: tables fill evenly.
    trainings = [
        Training(name, variant, seed, args.epochs or SETS[name].epochs, args.work_dir)
        for seed in args.seeds
        for name in args.sets
        for variant in args.variants
    ]
    for training in trainings:
        if read_result(training.result, training.config):
            continue
        if args.minutes is not None and time.monotonic() - start > 60 * args.minutes:
            continue
        rows = training.run()
        write_result(training.result, training.config, rows)
        print(f'{training.label}: {rows[training.variant]}', flush=True)
    by_set = sorted(
        trainings, key=lambda t: (args.sets.index(t.name), args.variants.index(t.variant))
    )
    table(by_set)


if __name__ == '__main__':
    run_tool(main)
