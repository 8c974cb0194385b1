"""Measure how long the blocks of a config's ViT take on this machine, at sizes from small to full.

python tools/pruning/measure_latency.py CONFIG --out latency.json [--batch-size 256] [--device cuda]
"""

import argparse

import torch

from vitdown.engine.launch import ConfigError, add_config_arguments, load_config, run_tool
from vitdown.models.pruning import ViTStructure, grid_axes, measure_latency
from vitdown.registry import MODELS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_arguments(parser)
    parser.add_argument('--out', required=True, help='.json file to write')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--dtype', choices=['float32', 'float16', 'bfloat16'], default='float32')
    parser.add_argument('--threads', type=int, help='CPU threads')
    parser.add_argument('--points', type=int, default=4, help='sizes of each axis but the MLP')
    parser.add_argument('--mlp-points', type=int, default=6, help='sizes of the MLP')
    parser.add_argument(
        '--repeats', type=int, default=10, help='runs in a pass, of which the median counts'
    )
    parser.add_argument(
        '--passes', type=int, default=3, help='passes over all sizes, of which the fastest counts'
    )
    parser.add_argument(
        '--whole-blocks',
        action='store_true',
        help='measure whole blocks at every point instead of attention and MLP by themselves',
    )
    parser.add_argument('--compile', action='store_true', help='measure under torch.compile')
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help='count the time that the CPU worked, with --threads 1: on a machine that others use',
    )
    parser.add_argument(
        '--raw', action='store_true', help='keep noise by which larger blocks are faster'
    )
    parser.add_argument(
        '--max-spread',
        type=float,
        default=0.2,
        help="refuse a table whose repeats differ by more at one point in ten (quartiles' distance "
        'over the median)',
    )
    parser.add_argument(
        '--max-negative',
        type=float,
        default=0.2,
        help='refuse a table in which a larger block is faster along a larger share of the steps',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if not args.out.endswith('.json'):
        raise ConfigError(f'--out {args.out} must be a .json file')
    if args.cpu_time and (args.threads != 1 or args.device != 'cpu'):
        raise ConfigError('--cpu-time needs --threads 1 and --device cpu')
    if args.threads is not None and args.threads < 1:
        raise ConfigError(f'--threads must be at least 1, got {args.threads}')
    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    model = MODELS.build(cfg.model)
    structure = ViTStructure(model, embedding=False)
    table = measure_latency(
        grid_axes(structure.sizes, args.points, args.mlp_points),
        model.backbone.pos_embed.shape[1],
        args.batch_size,
        args.device,
        getattr(torch, args.dtype),
        separable=not args.whole_blocks,
        repeats=args.repeats,
        compile=args.compile,
        cpu_time=args.cpu_time,
        passes=args.passes,
    )
    info = table.info
    print(
        f'\n{info["device"]}, {info["dtype"]}, batch {info["batch_size"]}, {info["num_tokens"]} '
        f'tokens: full model {1e3 * table(structure.sizes.points().numpy()).sum():.2f} ms in its '
        f'blocks; spread of repeats at most {100 * info["spread"]:.1f} % at nine of ten points; '
        f'larger but faster: {100 * info["negative_slopes"]:.1f} % of the steps'
    )
    remedy = 'measure on a quiet machine, or with more --repeats or a larger --batch-size'
    if info['spread'] > args.max_spread:
        raise ConfigError(
            f'The repeats differ by {100 * info["spread"]:.0f} %, more than --max-spread allows; '
            + remedy
        )
    if info['negative_slopes'] > args.max_negative:
        raise ConfigError(
            f'A larger block is faster along {100 * info["negative_slopes"]:.0f} % of the steps '
            f'between sizes, more than --max-negative allows; {remedy}, or fewer --points'
        )
    if not args.raw:
        table = table.monotone()
    table.save(args.out)
    print(f'Written to {args.out}')


if __name__ == '__main__':
    run_tool(main)
