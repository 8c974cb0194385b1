"""Train a model.

python tools/train.py CONFIG [--resume] [--amp | --no-amp] [--auto-scale-lr]
    [--cfg-options KEY=VALUE ...]
"""

import argparse
import os

import torch
from mmengine.config import Config

from vitdown.checkpoint import find_resumable_checkpoint
from vitdown.engine.launch import (
    ConfigError,
    add_config_arguments,
    add_launcher_arguments,
    build_runner,
    load_config,
    run_tool,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a model')
    add_config_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint; without a value, from the latest one in the work dir that '
        'can be loaded',
    )
    parser.add_argument(
        '--amp',
        action=argparse.BooleanOptionalAction,
        help="train in mixed precision, or not; as the config's optim_wrapper says by default",
    )
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by the ratio of the batch size to the recipe's",
    )
    add_launcher_arguments(parser)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def apply_args(cfg: Config, args: argparse.Namespace) -> None:
    cfg.launcher = args.launcher
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    apply_amp(cfg, args.amp)
    if args.auto_scale_lr:
        if not cfg.get('auto_scale_lr'):
            raise ConfigError(
                '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume == 'auto':
        # Where there is nothing to resume yet, the config's own load_from stays.
        if (checkpoint := find_resumable_checkpoint(cfg.work_dir)) is not None:
            cfg.load_from, cfg.resume = checkpoint, True
    elif args.resume is not None:
        cfg.load_from, cfg.resume = args.resume, True


def apply_amp(cfg: Config, amp: bool | None) -> None:
    """Train in mixed precision or not; None for what the config says."""
    wrapper = cfg.get('optim_wrapper', {})
    if amp:
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    elif amp is False and wrapper.get('type') == 'AmpOptimWrapper':
        wrapper.type = 'OptimWrapper'
        for option in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(option, None)
    if wrapper.get('type') == 'AmpOptimWrapper' and not torch.cuda.is_available():
        raise ConfigError(
            '--amp needs a GPU'
            if amp
            else 'The config trains in mixed precision (AmpOptimWrapper), which needs a GPU: add '
            '--no-amp to train in full precision'
        )


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    apply_args(cfg, args)
    build_runner(cfg).train()


if __name__ == '__main__':
    run_tool(main)
