"""Train on clean and on protected images, test on clean ones, and print mean and spread.

    export VITDOWN_DATA=FOLDER  # that holds cifar10/ and omniglot/
    python benchmarks/unlearnable_evidence.py                       # all groups
    python benchmarks/unlearnable_evidence.py --groups cnn --minutes 8

Every run is a process of ``tools/train.py``; its result is kept in ``--work-dir`` with all that was
set, and computed again only when some of it changes. With ``--minutes`` no run is started after
that time, so that the whole can be done in pieces. The key is the paper's seed unless the
environment has another. Rows say in brackets where a run is smaller than its config.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitdown.datasets.unlearnable import KEY_VARIABLE, Key, poison_mask, read_key
from vitdown.engine.launch import run_tool
from vitdown.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
NUM_IMAGES, NUM_CLASSES, KERNEL_SIZE, EPOCHS = 10000, 10, 3, 6
CIFAR = {'train_dataloader.dataset.indices': NUM_IMAGES}
REID = {
    'train_cfg.max_epochs': 10,
    'train_cfg.val_interval': 10,
    'param_scheduler.warmup_epochs': 2,
}
FRACTION = 'train_dataloader.dataset.pipeline.0.poison_fraction'


@dataclass(frozen=True)
class Experiment:
    """A config with its changes.

    Attributes:
        name: The row of the table, and the beginning of the results' file names.
        config: File below ``configs``.
        metric: What to report.
        options: Changes of the config.
        clean_rest_of: Train on the images alone that are not protected at this fraction.
        note: What the row says in brackets.
    """

    name: str
    config: str
    metric: str = 'accuracy/top1'
    options: dict = field(default_factory=dict)
    clean_rest_of: float | None = None
    note: str = ''

    @property
    def row(self) -> str:
        return f'{self.name} ({self.note})' if self.note else self.name


def cifar(name: str, config: str, options: dict | None = None, **kwargs) -> Experiment:
    """An experiment on half of the training images."""
    return Experiment(
        name, f'unlearnable/{config}-32x32.py', options=CIFAR | (options or {}), **kwargs
    )


def fraction(percent: int) -> list[Experiment]:
    """A part of the images protected, and for comparison the clean rest alone.

    The rest is trained on for more epochs, so that both see as many batches.
    """
    epochs = round(EPOCHS * 100 / (100 - percent))
    schedule = {
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': epochs,
        'param_scheduler.total_steps': epochs,
    }
    return [
        cifar(f'CNN, {percent} % protected', f'{CNN}-protected', {FRACTION: percent / 100}),
        cifar(
            f'CNN, the clean {100 - percent} % alone', CNN, schedule, clean_rest_of=percent / 100,
            note=f'{epochs} epochs, as many batches',
        ),
    ]  # fmt: skip


def defended(name: str, defence: str, steps: int) -> list[Experiment]:
    """Training on attacked images, clean and protected, with fewer steps than in the configs."""
    changes = dict(options={'custom_hooks.0.steps': steps}, note=f'{steps} of 10 steps')
    config = f'resnet-mini_{defence}_1xb128-6e_cifar10'
    return [
        cifar(f'CNN, clean, {name}', config, **changes),
        cifar(f'CNN, protected, {name}', f'{config}-protected', **changes),
    ]


def characters(name: str, config: str) -> Experiment:
    """A short training of the re-ID baseline."""
    file = f'{config}-64x64.py'
    return Experiment(f'Omniglot, {name}', file, 'reid/mAP', REID, note='10 of 40 epochs')


CNN = 'resnet-mini_1xb128-6e_cifar10'
VIT = 'vit-mini_1xb128-12e_cifar10'
GROUPS = {
    'cnn': [cifar('CNN, clean', CNN), cifar('CNN, protected', f'{CNN}-protected')],
    'vit': [cifar('ViT, clean', VIT), cifar('ViT, protected', f'{VIT}-protected')],
    'reid': [
        characters('clean', 'reid/vit-mini_1xb64-40e_omniglot'),
        characters('protected', 'unlearnable/vit-mini_1xb64-40e_omniglot-protected'),
    ],
    'fraction': [*fraction(50), *fraction(80)],
    'attack': defended('L-inf AT', 'at-linf', steps=3),
    'attack-l2': defended('L2 AT', 'at-l2', steps=3),
    'augment': [
        cifar(f'CNN, protected, {name}', f'resnet-mini_{name}_1xb128-6e_cifar10-protected')
        for name in ('mixup', 'cutmix', 'cutout', 'random-blur')
    ],
    'dat': defended('DAT', 'dat', steps=2),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--groups', nargs='+', choices=GROUPS, default=list(GROUPS))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--minutes', type=float, default=float('inf'))
    parser.add_argument('--work-dir', default='work_dirs/unlearnable_evidence')
    return parser.parse_args()


def settings(experiment: Experiment, key: Key) -> dict:
    """All that the result of an experiment follows from, except the seed."""
    return dict(
        config=experiment.config,
        options=experiment.options,
        clean_rest_of=experiment.clean_rest_of,
        metric=experiment.metric,
        key=key.fingerprint(b'unlearnable_evidence'),
    )


def result_name(experiment: Experiment, key: Key, seed: int) -> str:
    """Name of a run's folder and result; another one when any setting changes."""
    text = json.dumps(settings(experiment, key), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = experiment.name.replace(' ', '').replace(',', '-').replace('%', '')
    return f'{name}-{digest}-seed{seed}'


def clean_rest(fraction: float, key: Key) -> list[int]:
    """Indices of the images that are not protected at a fraction."""
    mask = poison_mask(key.seed, NUM_CLASSES, KERNEL_SIZE, NUM_IMAGES, fraction)
    return np.flatnonzero(~mask).tolist()


def train(experiment: Experiment, key: Key, seed: int, work_dir: Path) -> float:
    """Train and test once; the value of the experiment's metric."""
    options = {
        'randomness.seed': seed,
        'train_dataloader.num_workers': 0,
        'val_dataloader.num_workers': 0,
        'default_hooks.checkpoint.max_keep_ckpts': 1,
        **experiment.options,
    }
    if experiment.clean_rest_of is not None:
        indices = clean_rest(experiment.clean_rest_of, key)
        options['train_dataloader.dataset.indices'] = str(indices).replace(' ', '')
    subprocess.run(
        [sys.executable, str(ROOT / 'tools/train.py'), str(ROOT / 'configs' / experiment.config),
         '--work-dir', str(work_dir), '--resume', '--cfg-options',
         *(f'{key}={value}' for key, value in options.items())],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    entries = [json.loads(line) for line in logs[-1].read_text().splitlines()]
    return next(e[experiment.metric] for e in reversed(entries) if experiment.metric in e)


def main() -> None:
    args = parse_args()
    os.environ.setdefault(KEY_VARIABLE, 'seed:0')
    key = read_key()
    start = time.monotonic()
    root = Path(args.work_dir)
    rows = [experiment for group in args.groups for experiment in GROUPS[group]]
    found: dict[str, list[float]] = {experiment.name: [] for experiment in rows}
    for seed in args.seeds:
        for experiment in rows:
            name = result_name(experiment, key, seed)
            result = root / f'{name}.json'
            if not result.exists():
                if time.monotonic() - start > args.minutes * 60:
                    continue
                began = time.monotonic()
                value = train(experiment, key, seed, root / name)
                seconds = round(time.monotonic() - began)
                record = dict(value=value, seconds=seconds, settings=settings(experiment, key))
                write_atomically(json.dumps(record, indent=1).encode(), result)
                print(f'{experiment.row}, seed {seed}: {value:.2f} ({seconds} s)', flush=True)
            found[experiment.name].append(json.loads(result.read_text())['value'])
    print('| trained on | metric | mean ± deviation | seeds |\n| --- | --- | --- | --- |')
    for experiment in rows:
        values = found[experiment.name]
        if values:
            spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
            metric = experiment.metric.split('/')[-1]
            mean = f'{statistics.mean(values):.1f}{spread}'
            print(f'| {experiment.row} | {metric} | {mean} | {len(values)} |')


if __name__ == '__main__':
    run_tool(main)
