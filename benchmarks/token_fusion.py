"""Throughput of a DeiT without token fusion, with ToMe and with MCTF, in one interleaved run.

Every round runs all models once, in an order drawn anew. The table gives medians over the rounds:
of the times, and of the ratios within a round, which other work on the machine disturbs less.
``MCTF, plain form`` computes what the official code does, step by step, with the same result as
``MCTF``.

    python benchmarks/token_fusion.py --arch deit-small --batch-size 8 --rounds 35 --threads 1
"""

import argparse
import random
import statistics
import time

import torch
from plain_mctf import PlainMCTF

from vitdown.models.backbones import VisionTransformer

PLAIN = 'plain'
MCTF_16, MCTF_PLAIN_FORM = 'MCTF r=16', 'MCTF r=16, plain form'
POLICIES = {
    PLAIN: None,
    'ToMe r=13': dict(type='ToMe', r=13),
    'ToMe r=16': dict(type='ToMe', r=16),
    MCTF_16: dict(type='MCTF', r=16),
    MCTF_PLAIN_FORM: dict(type='MCTF', r=16),
    'MCTF r=16, exact attention': dict(type='MCTF', r=16, attention='exact'),
    'MCTF-fast': dict(type='MCTF', r=0.35, layers=[3, 6, 9]),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--arch', default='deit-small')
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=35)
    parser.add_argument('--warmup', type=int, default=3)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--dtype', choices=['float32', 'float16', 'bfloat16'], default='float32')
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help='measure the time of this process on the processor, for one thread on a busy machine',
    )
    parser.add_argument('--compile', action='store_true', help='run under torch.compile')
    return parser.parse_args()


def build(arch: str) -> dict[str, VisionTransformer]:
    """Models with the same weights."""
    models = {
        name: VisionTransformer(arch, token_fusion=policy).eval()
        for name, policy in POLICIES.items()
    }
    # With the official settings, which keep no map from tokens to patches.
    plain_form = PlainMCTF(num_layers=12, r=16, trace_source=False)
    models[MCTF_PLAIN_FORM].token_fusion = plain_form.eval()
    torch.manual_seed(0)
    for parameter in models[PLAIN].parameters():
        if parameter.ndim > 1:
            torch.nn.init.trunc_normal_(parameter, std=0.05)
    for model in models.values():
        model.load_state_dict(models[PLAIN].state_dict())
    return models


def synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


@torch.inference_mode()
def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    dtype = getattr(torch, args.dtype)
    models = build(args.arch)
    images = torch.randn(args.batch_size, 3, 224, 224)
    # In double precision, where rounding decides no match.
    fast, plain = (models[n].double()(images[:2].double())[-1] for n in (MCTF_16, MCTF_PLAIN_FORM))
    print(
        f'largest difference of MCTF and its plain form, float64: {(fast - plain).abs().max():.1e}'
    )
    models = {name: model.to(device, dtype) for name, model in models.items()}
    images = images.to(device, dtype)
    if args.compile:
        models = {name: torch.compile(model) for name, model in models.items()}

    clock = time.process_time if args.cpu_time else time.perf_counter
    seconds = {name: [] for name in models}
    order = list(models)
    for round_ in range(args.warmup + args.rounds):
        random.Random(round_).shuffle(order)
        for name in order:
            synchronize(device)
            start = clock()
            models[name](images)
            synchronize(device)
            if round_ >= args.warmup:
                seconds[name].append(clock() - start)

    def gain(name: str, over: str) -> float:
        return statistics.median(b / a for a, b in zip(seconds[name], seconds[over]))

    place = torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'
    print(
        f'{place}, {args.threads} threads, {args.dtype}, {args.arch}, batch {args.batch_size}, '
        f'{args.rounds} rounds{", CPU time" if args.cpu_time else ""}\n'
    )
    print('| model | ms / batch | images/s | against plain |')
    print('| --- | --- | --- | --- |')
    for name, times in seconds.items():
        median = statistics.median(times)
        rate = args.batch_size / median
        print(f'| {name} | {median * 1e3:.0f} | {rate:.1f} | {gain(name, PLAIN):.2f} |')
    print(f'\nMCTF against its plain form: {gain(MCTF_16, MCTF_PLAIN_FORM):.2f}')


if __name__ == '__main__':
    main()
