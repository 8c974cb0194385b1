"""Train on clean and on protected images, test on clean ones, and print mean and spread.

    export VITDOWN_DATA=FOLDER  # that holds cifar10/ and omniglot/
    python benchmarks/unlearnable_evidence.py                       # all groups
    python benchmarks/unlearnable_evidence.py --groups cnn --minutes 8

Every run is a process of ``tools/train.py``; its result is kept in ``--work-dir`` and not computed
again, and with ``--minutes`` no run is started after that time, so that the whole can be done in
pieces. The key is the paper's seed unless the environment has another.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from vitdown.datasets.unlearnable import KEY_VARIABLE
from vitdown.engine.launch import run_tool

ROOT = Path(__file__).resolve().parents[1]
CIFAR = {'train_dataloader.dataset.indices': 10000}
REID = {
    'train_cfg.max_epochs': 10,
    'train_cfg.val_interval': 10,
    'param_scheduler.warmup_epochs': 2,
}
FRACTION = 'train_dataloader.dataset.pipeline.0.poison_fraction'


@dataclass(frozen=True)
class Experiment:
    """A config with its changes; ``name`` is a row of the table."""

    name: str
    config: str
    metric: str = 'accuracy/top1'
    options: dict = field(default_factory=dict)


def cifar(name: str, config: str, **options) -> Experiment:
    """An experiment on half of the training images."""
    options = {key.replace('__', '.'): value for key, value in options.items()}
    return Experiment(name, f'unlearnable/{config}-32x32.py', options={**CIFAR, **options})


def attacked(name: str, attack: str) -> Experiment:
    """Adversarial training with few steps."""
    config = f'resnet-mini_{attack}_1xb128-6e_cifar10-protected'
    return cifar(name, config, custom_hooks__0__steps=3)


CNN = 'resnet-mini_1xb128-6e_cifar10'
VIT = 'vit-mini_1xb128-12e_cifar10'
GROUPS = {
    'cnn': [cifar('CNN, clean', CNN), cifar('CNN, protected', f'{CNN}-protected')],
    'vit': [cifar('ViT, clean', VIT), cifar('ViT, protected', f'{VIT}-protected')],
    'reid': [
        Experiment(
            'Omniglot, clean', 'reid/vit-mini_1xb64-40e_omniglot-64x64.py', 'reid/mAP', REID
        ),
        Experiment(
            'Omniglot, protected',
            'unlearnable/vit-mini_1xb64-40e_omniglot-protected-64x64.py',
            'reid/mAP',
            REID,
        ),
    ],
    'fraction': [
        cifar(f'CNN, {percent} % protected', f'{CNN}-protected', **{FRACTION: percent / 100})
        for percent in (50, 80)
    ],
    'attack': [
        attacked('CNN, protected, L-inf AT', 'at-linf'),
        attacked('CNN, protected, L2 AT', 'at-l2'),
    ],
    'augment': [
        cifar(f'CNN, protected, {name}', f'resnet-mini_{name}_1xb128-6e_cifar10-protected')
        for name in ('mixup', 'cutmix', 'cutout', 'random-blur')
    ],
    'dat': [attacked('CNN, protected, DAT', 'dat')],
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--groups', nargs='+', choices=GROUPS, default=list(GROUPS))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--minutes', type=float, default=float('inf'))
    parser.add_argument('--work-dir', default='work_dirs/unlearnable_evidence')
    return parser.parse_args()


def run(experiment: Experiment, seed: int, work_dir: Path) -> float:
    """Train and test once; the value of the experiment's metric."""
    settings = {
        'randomness.seed': seed,
        'train_dataloader.num_workers': 0,
        'val_dataloader.num_workers': 0,
        'default_hooks.checkpoint.max_keep_ckpts': 1,
        **experiment.options,
    }
    subprocess.run(
        [sys.executable, str(ROOT / 'tools/train.py'), str(ROOT / 'configs' / experiment.config),
         '--work-dir', str(work_dir), '--resume', '--cfg-options',
         *(f'{key}={value}' for key, value in settings.items())],
        check=True, stdout=subprocess.DEVNULL, env={KEY_VARIABLE: 'seed:0', **os.environ},
    )  # fmt: skip
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    entries = [json.loads(line) for line in logs[-1].read_text().splitlines()]
    return next(e[experiment.metric] for e in reversed(entries) if experiment.metric in e)


def main() -> None:
    args = parse_args()
    start = time.monotonic()
    root = Path(args.work_dir)
    rows = [experiment for group in args.groups for experiment in GROUPS[group]]
    found: dict[str, list[float]] = {experiment.name: [] for experiment in rows}
    for seed in args.seeds:
        for experiment in rows:
            name = experiment.name.replace(' ', '').replace(',', '-').replace('%', '')
            result = root / f'{name}-seed{seed}.json'
            if not result.exists():
                if time.monotonic() - start > args.minutes * 60:
                    continue
                began = time.monotonic()
                value = run(experiment, seed, root / f'{name}-seed{seed}')
                seconds = time.monotonic() - began
                result.write_text(json.dumps({'value': value, 'seconds': round(seconds)}))
                print(f'{experiment.name}, seed {seed}: {value:.2f} ({seconds:.0f} s)', flush=True)
            found[experiment.name].append(json.loads(result.read_text())['value'])
    print('| trained on | metric | mean ± deviation | seeds |\n| --- | --- | --- | --- |')
    for experiment in rows:
        values = found[experiment.name]
        if values:
            spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
            metric = experiment.metric.split('/')[-1]
            mean = f'{statistics.mean(values):.1f}{spread}'
            print(f'| {experiment.name} | {metric} | {mean} | {len(values)} |')


if __name__ == '__main__':
    run_tool(main)
