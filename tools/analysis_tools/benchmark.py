"""Inference throughput and latency of a config's model on random images, in one or more runtimes.

python tools/analysis_tools/benchmark.py CONFIG --backends eager compile onnx

Beside its speed stands how much a runtime's output differs from eager PyTorch's, as a share of the
largest value. The exit code is 1 if one differs by more than --tolerance.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vitdown.engine.complexity import forward_of, input_size
from vitdown.engine.launch import ConfigError, add_config_arguments, load_config, run_tool
from vitdown.registry import MODELS

if TYPE_CHECKING:
    from vitdown.deployment import DeployModel

BACKENDS = ('eager', 'compile', 'onnx')
# Half precision keeps two to three digits, of which layers lose one.
TOLERANCES = {'float32': 1e-3, 'float16': 1e-2, 'bfloat16': 5e-2}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument('--shape', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--repeats', type=int, default=20)
    parser.add_argument('--warmup', type=int, default=3)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--dtype', choices=['float32', 'float16', 'bfloat16'], default='float32')
    parser.add_argument(
        '--backends', nargs='+', choices=BACKENDS, default=['eager'],
        help='eager PyTorch, torch.compile, ONNX Runtime (on the CPU, float32); measured in turns',
    )  # fmt: skip
    parser.add_argument(
        '--tolerance', type=float,
        help='largest difference of outputs (default: 1e-3, in float16 1e-2, in bfloat16 5e-2)',
    )  # fmt: skip
    args = parser.parse_args()
    if args.tolerance is None:
        args.tolerance = TOLERANCES[args.dtype]
    if 'onnx' in args.backends and (args.device != 'cpu' or args.dtype != 'float32'):
        parser.error('onnx runs on the CPU in float32: add --device cpu --dtype float32')
    return args


def onnx_forward(
    model: DeployModel, size: tuple[int, int], ids: dict[str, Tensor]
) -> Callable[[Tensor], Tensor]:
    """The model in ONNX Runtime, with as many threads as PyTorch has."""
    from vitdown.deployment import export_onnx, onnx_session

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'model.onnx'
        export_onnx(model, path, size, tolerance=float('inf'))
        session = onnx_session(path, torch.get_num_threads())
    feed = {name: value.numpy() for name, value in ids.items()}
    return lambda images: torch.from_numpy(session.run(None, dict(feed, images=images.numpy()))[0])


def largest_difference(found: object, expected: object) -> float:
    """Largest difference between outputs, as a share of the largest value expected.

    Infinity if they differ in number or shape.
    """
    pairs = list(zip(tree_leaves(found), tree_leaves(expected), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float('inf')
    scale = max(b.abs().max() for _, b in pairs)
    return float(max((a - b).abs().max() for a, b in pairs) / scale)


@torch.no_grad()
def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    model = MODELS.build(cfg.model).to(device=device, dtype=dtype).eval()
    shape = args.shape or input_size(model)
    if shape is None:
        raise ConfigError('The backbone does not say its input size; give --shape HEIGHT WIDTH')
    images = torch.rand(args.batch_size, 3, *shape, device=device, dtype=dtype)
    eager = forward_of(model)
    # Each runtime, and what PyTorch gives for it
    forwards: dict[str, tuple[Callable, Callable]] = {}
    if 'eager' in args.backends:
        forwards['eager'] = eager, eager
    if 'compile' in args.backends:
        compiled = copy.deepcopy(model)
        compiled.compile()
        forwards['compile'] = forward_of(compiled), eager
    if 'onnx' in args.backends:
        from vitdown.deployment import DeployModel

        deployed = DeployModel(model)
        ids = {
            name: torch.zeros(args.batch_size, dtype=torch.int64)
            for name in deployed.side_information
        }
        forwards['onnx'] = onnx_forward(deployed, tuple(shape), ids), partial(deployed, **ids)
    differences = {
        name: largest_difference(forward(images), expected(images))
        for name, (forward, expected) in forwards.items()
    }

    def run(forward: Callable[[Tensor], object]) -> float:
        start = time.perf_counter()
        forward(images)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    seconds = {name: [] for name in args.backends}
    for repeat in range(args.warmup + args.repeats):
        for name, times in seconds.items():
            elapsed = run(forwards[name][0])
            if repeat >= args.warmup:
                times.append(elapsed)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    place = torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'
    print(f'{place}, {args.dtype}, batch {args.batch_size}, {shape[0]}x{shape[1]}:')
    for name, median in medians.items():
        print(
            f'{name:<8} {args.batch_size / median:9.1f} images/s {median * 1e3:9.1f} ms a batch '
            f'{medians[args.backends[0]] / median:6.2f} x {args.backends[0]} '
            f'differs by {differences[name]:.1e} (median of {args.repeats})'
        )
    wrong = [name for name, value in differences.items() if not value <= args.tolerance]
    if wrong:
        raise SystemExit(
            f'{wrong[0]} differs from eager PyTorch by {differences[wrong[0]]:.1e} of the largest '
            f'output, more than {args.tolerance:.1e}: it does not compute the same, so its speed '
            'does not compare'
        )


if __name__ == '__main__':
    run_tool(main)
