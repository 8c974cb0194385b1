"""Train on clean and on protected images, test on clean ones, and print mean and spread.

    export VITDOWN_DATA=FOLDER  # that holds cifar10/ and omniglot/
    python -m benchmarks.unlearnable_evidence                       # all groups
    python -m benchmarks.unlearnable_evidence --groups cnn --minutes 8

Every run is a process of ``tools/train.py``; its result is kept in ``--work-dir`` with all that was
set and a fingerprint of the config, and computed again only when some of it changes. With
``--minutes`` no run is started after that time, so that the whole can be done in pieces. The key is
the paper's seed unless the environment has another. Rows say in brackets where a run is smaller
than its config.
"""

import argparse
import os
from dataclasses import dataclass, field

import numpy as np

from benchmarks.evidence import Run, add_evidence_arguments, collect
from vitdown.datasets.unlearnable import KEY_VARIABLE, Key, poison_mask, read_key
from vitdown.engine.launch import run_tool

NUM_IMAGES, NUM_CLASSES, KERNEL_SIZE = 10000, 10, 3
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


def fraction(percent: int, model: str = 'CNN') -> list[Experiment]:
    """A part of the images protected, and for comparison the clean rest alone.

    The rest is trained on for more epochs, so that both see as many batches.
    """
    config, full, schedule = MODELS[model]
    epochs = round(full * 100 / (100 - percent))
    longer = {
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': epochs,
        **dict.fromkeys(schedule, epochs),
    }
    return [
        cifar(f'{model}, {percent} % protected', f'{config}-protected', {FRACTION: percent / 100}),
        cifar(
            f'{model}, the clean {100 - percent} % alone', config, longer,
            clean_rest_of=percent / 100, note=f'{epochs} epochs, as many batches',
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


def attacked_vit(steps: int) -> list[Experiment]:
    """The ViT in the L-infinity ball that the CNN's config attacks in."""
    hook = dict(type='PGDTrainingHook', norm='linf', eps=4 / 255, steps=steps)
    changes = dict(options={'custom_hooks': [hook]}, note=f'{steps} of 10 steps')
    return [
        cifar('ViT, clean, L-inf AT', VIT, **changes),
        cifar('ViT, protected, L-inf AT', f'{VIT}-protected', **changes),
    ]


def characters(name: str, config: str) -> Experiment:
    """A short training of the re-ID baseline."""
    file = f'{config}-64x64.py'
    return Experiment(f'Omniglot, {name}', file, 'reid/mAP', REID, note='10 of 40 epochs')


CNN = 'resnet-mini_1xb128-6e_cifar10'
VIT = 'vit-mini_1xb128-12e_cifar10'
# Config, epochs, and what of its schedule counts them
MODELS = {'CNN': (CNN, 6, ('param_scheduler.total_steps',)), 'ViT': (VIT, 12, ())}
GROUPS = {
    'cnn': [cifar('CNN, clean', CNN), cifar('CNN, protected', f'{CNN}-protected')],
    'vit': [cifar('ViT, clean', VIT), cifar('ViT, protected', f'{VIT}-protected')],
    'reid': [
        characters('clean', 'reid/vit-mini_1xb64-40e_omniglot'),
        characters('protected', 'unlearnable/vit-mini_1xb64-40e_omniglot-protected'),
    ],
    'fraction': [*fraction(50), *fraction(80)],
    'vit-fraction': [*fraction(50, 'ViT'), *fraction(80, 'ViT')],
    'vit-attack': attacked_vit(steps=3),
    'attack': defended('L-inf AT', 'at-linf', steps=3),
    'attack-l2': defended('L2 AT', 'at-l2', steps=3),
    'augment': [
        cifar(f'CNN, protected, {name}', f'resnet-mini_{name}_1xb128-6e_cifar10-protected')
        for name in ('mixup', 'cutmix', 'cutout', 'random-blur')
    ],
    'dat': defended('DAT', 'dat', steps=2),
    'mechanism': [
        cifar('CNN, one filter for all classes', f'{CNN}-protected-same-filter'),
        *(
            cifar(f'CNN, {name}, {test} test', f'{CNN}-protected-{test}-test', options)
            for name, options in (('clean', {FRACTION: 0.0}), ('protected', {}))
            for test in ('filtered', 'rotated')
        ),
    ],
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_evidence_arguments(parser, GROUPS, 'work_dirs/unlearnable_evidence')
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


def clean_rest(fraction: float, key: Key) -> list[int]:
    """Indices of the images that are not protected at a fraction."""
    mask = poison_mask(key.seed, NUM_CLASSES, KERNEL_SIZE, NUM_IMAGES, fraction)
    return np.flatnonzero(~mask).tolist()


def as_run(experiment: Experiment, key: Key) -> Run:
    """The experiment as a row of the table."""
    options = experiment.options
    if experiment.clean_rest_of is not None:
        indices = clean_rest(experiment.clean_rest_of, key)
        options = {**options, 'train_dataloader.dataset.indices': indices}
    return Run(
        experiment.name,
        experiment.config,
        experiment.metric,
        options,
        experiment.row,
        settings(experiment, key),
    )


def main() -> None:
    args = parse_args()
    os.environ.setdefault(KEY_VARIABLE, 'seed:0')
    key = read_key()
    runs = [as_run(experiment, key) for group in args.groups for experiment in GROUPS[group]]
    collect(runs, args.seeds, args.work_dir, args.minutes)


if __name__ == '__main__':
    run_tool(main)
