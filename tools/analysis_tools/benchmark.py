"""Inference throughput and latency of a config's model on random images, in one or more runtimes.

python tools/analysis_tools/benchmark.py CONFIG --backends eager compile onnx
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vitdown.engine.complexity import forward_of, input_size
from vitdown.engine.launch import ConfigError, add_config_arguments, load_config, run_tool
from vitdown.registry import MODELS

BACKENDS = ('eager', 'compile', 'onnx')


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
    args = parser.parse_args()
    if 'onnx' in args.backends and (args.device != 'cpu' or args.dtype != 'float32'):
        parser.error('onnx runs on the CPU in float32: add --device cpu --dtype float32')
    return args


def onnx_forward(model: torch.nn.Module, size: tuple[int, int]) -> Callable[[Tensor], object]:
    """The model in ONNX Runtime, with as many threads as PyTorch has."""
    from vitdown.deployment import DeployModel, export_onnx, onnx_session

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'model.onnx'
        export_onnx(DeployModel(model), path, size)
        session = onnx_session(path, torch.get_num_threads())
    return lambda images: session.run(None, {'images': images.numpy()})


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
    forwards = {}
    if 'eager' in args.backends:
        forwards['eager'] = forward_of(model)
    if 'compile' in args.backends:
        compiled = copy.deepcopy(model)
        compiled.compile()
        forwards['compile'] = forward_of(compiled)
    if 'onnx' in args.backends:
        forwards['onnx'] = onnx_forward(model, tuple(shape))

    def run(forward: Callable[[Tensor], object]) -> float:
        start = time.perf_counter()
        forward(images)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    seconds = {name: [] for name in args.backends}
    for repeat in range(args.warmup + args.repeats):
        for name, times in seconds.items():
            elapsed = run(forwards[name])
            if repeat >= args.warmup:
                times.append(elapsed)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    place = torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'
    print(f'{place}, {args.dtype}, batch {args.batch_size}, {shape[0]}x{shape[1]}:')
    for name, median in medians.items():
        print(
            f'{name:<8} {args.batch_size / median:9.1f} images/s {median * 1e3:9.1f} ms a batch '
            f'{medians[args.backends[0]] / median:6.2f} x {args.backends[0]} '
            f'(median of {args.repeats})'
        )


if __name__ == '__main__':
    run_tool(main)
