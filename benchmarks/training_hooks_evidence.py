"""Distillation and mixing hooks against training without them: mean and spread of several seeds.

    export VITDOWN_DATA=FOLDER  # that holds cifar10/, flowers17/, omniglot/ and weights/
    python -m benchmarks.training_hooks_evidence --groups uskd smmix-cifar --minutes 8

Every run is a process of ``tools/train.py``; its result is kept in ``--work-dir`` with all that was
set and a fingerprint of the config, and computed again only when some of it changes. With
``--minutes`` no run is started after that time, so that the whole can be done in pieces. The group
``reid-distill`` needs a trained teacher, by default that of
configs/dcal/dcal_vit-mini_1xb64-40e_omniglot-64x64.py.
"""

import argparse
import os
from pathlib import Path

from benchmarks.evidence import ROOT, Run, add_evidence_arguments, collect
from vitdown.engine.launch import ConfigError, run_tool

RESNET = 'resnet8_1xb64-10e_cifar10-32x32.py'
VIT = 'vit-mini_1xb128-10e_cifar10-32x32.py'
MICRO = 'vit-micro_1xb64-15e_omniglot-64x64.py'
TEACHER = 'dcal_vit-mini_1xb64-40e_omniglot-64x64'
#: Training images of CIFAR-10, unless ``--images`` says otherwise.
IMAGES = {'distill': 4000, 'vit-distill': 4000, 'uskd': 10000, 'smmix-cifar': 4000}
GROUPS = [*IMAGES, 'reid-distill', 'smmix-flowers']
#: Four layers of width 96 for 12 epochs, as in dcal_ablation.py.
FLOWERS = {
    'model.backbone.arch': dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
    'model.backbone.patch_size': 12,
    'model.head.in_channels': 96,
    'train_cfg.max_epochs': 12,
    'train_cfg.val_interval': 12,
    'param_scheduler.warmup_epochs': 2,
}
MIXUP = dict(type='mmpretrain.Mixup', alpha=0.8)
CUTMIX = dict(type='mmpretrain.CutMix', alpha=1.0)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_evidence_arguments(parser, GROUPS, 'work_dirs/training_hooks_evidence')
    parser.add_argument('--images', type=int, help='training images of CIFAR-10')
    parser.add_argument(
        '--teacher-depth', type=int, choices=[20, 56], default=20,
        help='ResNet that teaches the group distill (default: 20; 56 takes three times as long)',
    )  # fmt: skip
    parser.add_argument('--reid-teacher-config', default=f'configs/dcal/{TEACHER}.py')
    parser.add_argument('--reid-teacher', default=f'work_dirs/{TEACHER}/epoch_40.pth')
    return parser.parse_args()


def cifar_runs(args: argparse.Namespace, group: str) -> list[Run]:
    """The rows of a group on CIFAR-10."""
    images = args.images or IMAGES[group]

    def run(name: str, config: str, **options) -> Run:
        options = {'train_dataloader.dataset.indices': images, **options}
        row = f'{name} ({images:,} images)'
        return Run(f'{group} {name}', config, options=options, row=row)

    if group == 'distill':
        weights = f'weights/cifar10_resnet{args.teacher_depth}_fp16.pth'
        teacher = {
            'custom_hooks.0.teacher.backbone.depth': args.teacher_depth,
            'custom_hooks.0.teacher_checkpoint': f'{os.getenv("VITDOWN_DATA", "data")}/{weights}',
        }
        return [
            run('ResNet-8, cross-entropy', f'nkd_uskd/{RESNET}'),
            *(
                run(
                    f'ResNet-8, {name} of ResNet-{args.teacher_depth}',
                    f'nkd_uskd/{name.lower()}_{RESNET}',
                    **teacher,
                )
                for name in ('KD', 'DKD', 'NKD')
            ),
        ]
    if group == 'vit-distill':
        return [
            run('ViT, cross-entropy', f'smmix/{VIT}'),
            run('ViT, NKD of ResNet-56', f'nkd_uskd/nkd_{VIT}'),
        ]
    if group == 'uskd':
        return [
            run('ResNet-8, cross-entropy', f'nkd_uskd/{RESNET}'),
            run('ResNet-8, label smoothing', f'nkd_uskd/label-smooth_{RESNET}'),
            run('ResNet-8, USKD', f'nkd_uskd/uskd_{RESNET}'),
        ]
    return [
        run('ViT, no mixing', f'smmix/{VIT}'),
        run('ViT, Mixup', f'smmix/mixup_{VIT}'),
        run(
            'ViT, CutMix',
            f'smmix/mixup_{VIT}',
            **{'model.data_preprocessor.batch_augments.augments': [CUTMIX]},
        ),
        run('ViT, CutMix or Mixup', f'smmix/cutmix_{VIT}'),
        run('ViT, SMMix', f'smmix/smmix_{VIT}'),
    ]


def reid_runs(args: argparse.Namespace) -> list[Run]:
    """A small student alone and with the teacher that the arguments name."""
    if not Path(args.reid_teacher).is_file():
        raise ConfigError(
            f'There is no teacher {args.reid_teacher}; train it with python tools/train.py '
            f'{args.reid_teacher_config}, or name one by --reid-teacher'
        )
    teacher = {
        'custom_hooks.0.teacher': str(ROOT / args.reid_teacher_config),
        'custom_hooks.0.teacher_checkpoint': args.reid_teacher,
    }
    name = Path(args.reid_teacher_config).stem
    return [
        Run('small ViT, Omniglot', f'nkd_uskd/{MICRO}', 'reid/mAP'),
        Run(f'small ViT, Omniglot, NKD of {name}', f'nkd_uskd/nkd_{MICRO}', 'reid/mAP', teacher),
    ]


def flowers_runs() -> list[Run]:
    """Ways to mix photographs of flowers."""

    def run(name: str, *augments: dict) -> Run:
        options = dict(FLOWERS)
        if augments:
            options['model.data_preprocessor.num_classes'] = 17
            options['model.data_preprocessor.batch_augments'] = dict(augments=list(augments))
        config = 'dcal/vit-mini_1xb64-40e_flowers17-96x96.py'
        return Run(f'flowers, {name}', config, options=options, row=f'small ViT, Flowers, {name}')

    smmix = 'smmix/smmix_vit-mini_1xb64-40e_flowers17-96x96.py'
    return [
        run('no mixing'),
        run('Mixup', MIXUP),
        run('CutMix', CUTMIX),
        run('CutMix or Mixup', CUTMIX, MIXUP),
        Run('flowers, SMMix', smmix, options=FLOWERS, row='small ViT, Flowers, SMMix'),
    ]


def build_runs(args: argparse.Namespace) -> list[Run]:
    """The rows of all groups that the arguments name."""
    make = {'reid-distill': lambda: reid_runs(args), 'smmix-flowers': flowers_runs}
    return [
        run
        for group in args.groups
        for run in (make[group]() if group in make else cifar_runs(args, group))
    ]


def main() -> None:
    args = parse_args()
    collect(build_runs(args), args.seeds, args.work_dir, args.minutes)


if __name__ == '__main__':
    run_tool(main)
