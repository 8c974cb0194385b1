"""What the tools that run a re-ID model on images share."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

from vitdown.engine.launch import add_config_arguments, load_config

from .reid_inferencer import ReIDInferencer


def add_model_arguments(parser: ArgumentParser) -> None:
    """Arguments that name a model and how to run it."""
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint of the config, .pth or .safetensors')
    parser.add_argument('--device', help='default: the GPU if there is one, else cpu')
    parser.add_argument('--batch-size', type=int, default=32, help='images at a time (default: 32)')
    parser.add_argument(
        '--workers', type=int, default=0, help='processes that read images (default: 0)'
    )


def add_image_arguments(parser: ArgumentParser, what: str) -> None:
    """Arguments that name images."""
    parser.add_argument(
        'images', nargs='+', help=f'{what}: files, folders, quoted patterns, addresses'
    )
    parser.add_argument(
        '--metadata',
        metavar='TABLE.csv',
        help="a row for each image: 'path' (relative to the table's folder) and further columns, "
        'such as camera or time; camera and view go to models with side information, too',
    )
    parser.add_argument(
        '--on-error',
        choices=['stop', 'skip'],
        default='stop',
        help='what to do about images that can not be read (default: stop)',
    )


def build_inferencer(args: Namespace) -> ReIDInferencer:
    """The model of :func:`add_model_arguments`."""
    return ReIDInferencer(
        load_config(args.config, args.cfg_options, args.work_dir),
        args.checkpoint,
        device=args.device,
        batch_size=args.batch_size,
        num_workers=args.workers,
        show_progress=sys.stderr.isatty(),
    )


def report_skipped(skipped: dict[str, str]) -> None:
    """Name the images that were left out."""
    for reason in skipped.values():
        print(f'skipped: {reason}', file=sys.stderr)
    if skipped:
        print(f'{len(skipped)} images skipped', file=sys.stderr)
