"""What the tools that run a re-ID model on images share."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

import numpy as np
import torch

from vitdown.engine.launch import ConfigError, add_config_arguments, load_config
from vitdown.evaluation.index.metadata import Columns

from .embeddings import read_metadata
from .reid_inferencer import ReIDInferencer

_OF_ALL = ('camera', 'view')


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
    add_metadata_arguments(parser)
    parser.add_argument(
        '--on-error',
        choices=['stop', 'skip'],
        default='stop',
        help='what to do about images that can not be read (default: stop)',
    )


def add_metadata_arguments(parser: ArgumentParser) -> None:
    """Arguments that say more about images, which :func:`image_metadata` reads."""
    parser.add_argument(
        '--metadata',
        metavar='TABLE.csv',
        help="a row for each image: 'path' (relative to the table's folder) and further columns, "
        'such as camera or time; models that embed cameras or views take them from here',
    )
    for name in _OF_ALL:
        parser.add_argument(f'--{name}', type=int, help=f'{name} of all images, instead of a table')


def image_metadata(args: Namespace, paths: Sequence[str]) -> Columns:
    """Columns of a value for each image, as :func:`add_metadata_arguments` names them."""
    columns = read_metadata(args.metadata, paths) if args.metadata else {}
    for name in _OF_ALL:
        if (value := getattr(args, name)) is None:
            continue
        if name in columns:
            raise ConfigError(f'{args.metadata} has a column {name!r} already: leave out --{name}')
        columns[name] = np.full(len(paths), value)
    return columns


def check_device(device: str | None) -> None:
    """Whether the device is one that PyTorch finds here."""
    try:
        # Back again: nothing comes back from the meta device.
        torch.empty(1, device=device).cpu()
    # CUDA reports its absence as an AssertionError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f'--device {device} can not be used: {reason}') from error


def build_inferencer(args: Namespace) -> ReIDInferencer:
    """The model of :func:`add_model_arguments`."""
    check_device(args.device)
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
