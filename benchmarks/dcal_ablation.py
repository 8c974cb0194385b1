"""DCAL against its baseline: what each branch adds, on small data, with a small model.

    export VITDOWN_DATA=FOLDER  # holds omniglot/, nyala/, flowers17/; writable
    python -m benchmarks.dcal_ablation --sets synthetic omniglot --seeds 0 1 2

All variants of a set share model, images, epochs and schedule, all in ``SETS``. Every finished
training is written to ``results.json`` in the work dir and not run again, so that a run that was
interrupted goes on, and the table of what is there comes at the end. Models with GLCA are tested
with each branch alone, too.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from benchmarks.train_table import print_table, spread
from vitdown.checkpoint import write_atomically
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
        head.num_heads = ARCH['num_heads']
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


class Results:
    """Metrics of finished trainings, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = json.loads(path.read_text()) if path.is_file() else {}

    @staticmethod
    def key(name: str, variant: str, seed: int, epochs: int) -> str:
        return f'{name} | {variant} | {epochs} epochs | seed {seed}'

    def add(self, key: str, metrics: dict[str, float]) -> None:
        self.metrics[key] = metrics
        write_atomically(json.dumps(self.metrics, indent=1).encode(), self.path)


def table(name: str, variants: list[str], epochs: int, seeds: list[int], results: Results) -> None:
    metrics = SETS[name].metrics
    rows = []
    for variant in variants:
        for row in (variant, *(f'{variant}: {part}' for part in BRANCHES.values())):
            keys = (Results.key(name, row, seed, epochs) for seed in seeds)
            runs = [results.metrics[key] for key in keys if key in results.metrics]
            if runs:
                cells = (spread([run[metric] for run in runs]) for metric in metrics)
                rows.append([name, row, str(epochs), str(len(runs)), *cells])
    if rows:
        columns = [metric.split('/')[-1] for metric in metrics]
        print_table(['set', 'model', 'epochs', 'seeds', *columns], rows)
        print()


def main() -> None:
    args = parse_args()
    if args.epochs is not None and args.epochs < 2:
        raise ConfigError(f'--epochs must be at least 2, got {args.epochs}')
    work_dir = Path(args.work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    results = Results(work_dir / 'results.json')
    start = time.monotonic()
    epochs = {name: args.epochs or SETS[name].epochs for name in args.sets}
    # All sets and variants with one seed before the next seed: tables fill evenly.
    trainings = [
        (name, variant, seed, epochs[name])
        for seed in args.seeds
        for name in args.sets
        for variant in args.variants
    ]
    for training in trainings:
        key = Results.key(*training)
        if key in results.metrics:
            continue
        began = time.monotonic()
        if args.minutes is not None and began - start > 60 * args.minutes:
            break
        runner = build_runner(configure(*training, str(work_dir / 'logs')))
        runner.train()
        metrics = {**runner.test(), 'seconds': round(time.monotonic() - began, 1)}
        name, variant, seed, count = training
        if getattr(runner.model.head, 'glca', None) is not None:
            for branch, part in BRANCHES.items():
                runner.model.head.infer_branch = branch
                part_key = Results.key(name, f'{variant}: {part}', seed, count)
                results.add(part_key, runner.test())
        results.add(key, metrics)
        print(key, results.metrics[key], flush=True)
    for name in args.sets:
        table(name, args.variants, epochs[name], args.seeds, results)


if __name__ == '__main__':
    run_tool(main)
