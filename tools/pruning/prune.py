"""Prune a trained ViT to a share of its latency, multiply-adds or parameters.

python tools/pruning/prune.py CONFIG CHECKPOINT --target-latency 0.5 --latency-table latency.json

Trains on with the config's data and losses, at a constant learning rate, until the target is
reached; then tools/train.py on the config written beside the pruned checkpoint fine-tunes it, as
the config says, or another one by --recipe.
"""

import argparse
import os

from mmengine.config import Config

from vitdown.checkpoint import find_resumable_checkpoint, load_checkpoint_file
from vitdown.engine.hooks import PruningHook
from vitdown.engine.launch import (
    ConfigError,
    add_config_arguments,
    add_launcher_arguments,
    build_runner,
    load_config,
    run_tool,
)

LIMITS = dict(max_epochs=1000, max_iters=100_000)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint of the config to prune')
    target = parser.add_mutually_exclusive_group(required=True)
    for cost in ('latency', 'macs', 'params'):
        target.add_argument(
            f'--target-{cost}', type=float, nargs='+', metavar='SHARE',
            help=f'share of the {cost} of the blocks to come down to; several, falling, give '
            'several models',
        )  # fmt: skip
    parser.add_argument('--latency-table', help='written by tools/pruning/measure_latency.py')
    parser.add_argument(
        '--lr', type=float,
        help="constant; default: a tenth of the config's, or the config's if it prunes by itself",
    )  # fmt: skip
    parser.add_argument('--max-epochs', type=int, help='give up after so many (1000)')
    parser.add_argument(
        '--max-iters', type=int, help='likewise, of configs that count iterations (100000)'
    )
    parser.add_argument(
        '--recipe', metavar='CONFIG',
        help="config to fine-tune with; default: the PruningHook's, if there is one, or CONFIG",
    )  # fmt: skip
    parser.add_argument('--interval', type=int, help='steps between pruning events (100)')
    parser.add_argument(
        '--prune-per-event', type=int, help='units by which the rank of the threshold grows (32)'
    )
    parser.add_argument('--cost-weight', type=float, help='weight of the cost (4.85e-4)')
    parser.add_argument(
        '--saliency', choices=['nvit', 'paper', 'magnitude', 'random'], help='(nvit)'
    )
    parser.add_argument(
        '--group-sizes', nargs='+', metavar='KIND=UNITS',
        help='units pruned together, e.g. head=1 (emb=16 head=2 qk=8 v=8 mlp=16)',
    )  # fmt: skip
    parser.add_argument('--ln-mode', choices=['dense', 'exact'], help='of the export (dense)')
    parser.add_argument(
        '--resume', action='store_true', help="go on from the work dir's latest checkpoint"
    )
    add_launcher_arguments(parser)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def pruning_hook(cfg: Config, args: argparse.Namespace) -> dict:
    """The hook of the arguments, on top of one that the config has already."""
    hooks = [h for h in cfg.get('custom_hooks') or [] if 'PruningHook' in str(h['type'])]
    hook = dict(hooks[0]) if hooks else dict(type='PruningHook')
    hook['recipe'] = args.recipe or hook.get('recipe') or cfg.to_dict()
    for cost in ('latency', 'macs', 'params'):
        targets = getattr(args, f'target_{cost}')
        if targets is not None:
            hook |= dict(cost=cost, targets=targets)
    for name in ('interval', 'prune_per_event', 'cost_weight', 'saliency', 'ln_mode'):
        if getattr(args, name) is not None:
            hook[name] = getattr(args, name)
    if hook['cost'] == 'latency':
        hook['latency_table'] = args.latency_table or hook.get('latency_table')
    elif args.latency_table:
        raise ConfigError('--latency-table is for --target-latency')
    else:
        hook.pop('latency_table', None)
    if args.group_sizes:
        sizes = dict(size.partition('=')[::2] for size in args.group_sizes)
        if not all(size.isdigit() for size in sizes.values()):
            raise ConfigError(f'--group-sizes takes KIND=UNITS, got {args.group_sizes}')
        sizes = {kind: int(size) for kind, size in sizes.items()}
        hook['group_sizes'] = {**(hook.get('group_sizes') or {}), **sizes}
    PruningHook(**{key: value for key, value in hook.items() if key != 'type'})
    return hook


def apply_args(cfg: Config, args: argparse.Namespace) -> None:
    cfg.launcher = args.launcher
    load_checkpoint_file(args.checkpoint)
    hook = pruning_hook(cfg, args)
    hooks = cfg.get('custom_hooks') or []
    others = [h for h in hooks if 'PruningHook' not in str(h['type'])]
    own = len(others) < len(hooks)
    cfg.custom_hooks = [*others, hook]
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.resume and (latest := find_resumable_checkpoint(cfg.work_dir)):
        cfg.load_from, cfg.resume = latest, True
    optimizer = cfg.optim_wrapper.optimizer
    if args.lr is not None:
        optimizer.lr = args.lr
    elif not own:
        optimizer.lr = 0.1 * optimizer.lr
    cfg.param_scheduler = None
    limit = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
    for name in LIMITS:
        if name != limit and getattr(args, name) is not None:
            flag, right = (f'--{key.replace("_", "-")}' for key in (name, limit))
            raise ConfigError(f'{flag} does not fit: the config trains by {limit}; give {right}')
    given = getattr(args, limit)
    cfg.train_cfg[limit] = LIMITS[limit] if given is None else given
    if cfg.train_cfg[limit] < 1:
        raise ConfigError(f'--{limit.replace("_", "-")} must be at least 1')
    # What pruning leaves is worth nothing before it is fine-tuned.
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.train_cfg.pop('val_interval', None)


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    apply_args(cfg, args)
    runner = build_runner(cfg)
    runner.train()
    hook = next(hook for hook in runner.hooks if isinstance(hook, PruningHook))
    if not hook.done:
        raise SystemExit(
            f'error: pruning gave up at {100 * hook.pruner.cost_ratio:.1f} % of the {hook.cost}, '
            f'above the target of {100 * hook.targets[-1]:g} %, which has no model; allow more '
            '--max-epochs or --max-iters, a shorter --interval or a larger --prune-per-event'
        )


if __name__ == '__main__':
    run_tool(main)
