"""Inference throughput and latency of a config's model on random images."""

import argparse
import statistics
import time

import torch

from vitdown.engine.complexity import forward_of, input_size
from vitdown.engine.launch import ConfigError, add_config_arguments, load_config, run_tool
from vitdown.registry import MODELS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('--shape', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--repeats', type=int, default=20)
    parser.add_argument('--warmup', type=int, default=3)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--dtype', choices=['float32', 'float16', 'bfloat16'], default='float32')
    parser.add_argument('--compile', action='store_true', help='run under torch.compile')
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    model = MODELS.build(cfg.model).to(device=device, dtype=dtype)
    model.eval()
    shape = args.shape or input_size(model)
    if shape is None:
        raise ConfigError('The backbone does not say its input size; give --shape HEIGHT WIDTH')
    images = torch.rand(args.batch_size, 3, *shape, device=device, dtype=dtype)
    if args.compile:
        model.compile()
    forward = forward_of(model)

    def run() -> float:
        start = time.perf_counter()
        forward(images)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for _ in range(args.warmup):
        run()
    seconds = statistics.median(run() for _ in range(args.repeats))
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'
    print(
        f'{name}, {args.dtype}, batch {args.batch_size}, {shape[0]}x{shape[1]}: '
        f'{args.batch_size / seconds:.1f} images/s, {seconds * 1e3:.1f} ms a batch '
        f'(median of {args.repeats})'
    )


if __name__ == '__main__':
    run_tool(main)
