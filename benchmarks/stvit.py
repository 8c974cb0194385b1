"""Latency of STViT-R-Swin beside Swin and beside the form of the released code, in one run.

Every round runs all models of a task once, in an order drawn anew; the table gives medians over the
rounds and ratios of medians. ``released form`` has the weights and results of ``STViT-R``, computed
step by step as the released code does. ``Swin`` is MMPretrain's (classification) or MMDetection's;
``Swin, fused kernel`` has our window attention.

    python benchmarks/stvit.py --arch small --rounds 7 --threads 1
"""

import argparse
import copy
import random
import statistics
import time
from collections.abc import Callable

import torch
from mmdet.models.backbones import SwinTransformer as DetectionSwin
from mmpretrain.models.backbones import SwinTransformer as ClassificationSwin
from stvit_unfolded import use_unfolded_form
from torch import Tensor, nn

from vitdown.models.backbones import STViTSwin
from vitdown.models.layers import FusedWindowMSA

OURS, SWIN = 'STViT-R', 'Swin'
FUSED = 'Swin, fused kernel'
RELEASED = 'STViT-R, released form'
OFFICIAL_MASK = "STViT-R, pad_mask='official'"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--arch', choices=['tiny', 'small', 'base'], default='small')
    parser.add_argument('--tasks', nargs='+', choices=sorted(TASKS), default=sorted(TASKS))
    parser.add_argument('--shape', type=int, nargs=2, default=(800, 1280), help='for detection')
    parser.add_argument('--batch-size', type=int, default=8, help='for classification')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--dtype', choices=['float32', 'float16', 'bfloat16'], default='float32',
        help='others than float32: mixed precision, the only one the released code runs in',
    )  # fmt: skip
    parser.add_argument('--cpu-time', action='store_true', help='of the process, beside other work')
    return parser.parse_args()


def fused_swin(arch: str, **kwargs) -> ClassificationSwin:
    attention = dict(attn_cfgs=dict(window_msa=FusedWindowMSA))
    return ClassificationSwin(arch, stage_cfgs=dict(block_cfgs=attention), **kwargs)


def classifiers(args: argparse.Namespace) -> tuple[dict[str, nn.Module], tuple[int, ...]]:
    ours = randomised(STViTSwin(args.arch, key_mode='released_cls'))
    models = {
        SWIN: ClassificationSwin(args.arch),
        FUSED: fused_swin(args.arch),
        OURS: ours,
        RELEASED: use_unfolded_form(copy.deepcopy(ours)),
    }
    return models, (args.batch_size, 3, 224, 224)


def detectors(args: argparse.Namespace) -> tuple[dict[str, nn.Module], tuple[int, ...]]:
    stages = dict(out_indices=(0, 1, 2, 3))
    ours = randomised(STViTSwin(args.arch, **stages))
    official = STViTSwin(args.arch, pad_mask='official', **stages)
    official.load_state_dict(ours.state_dict())
    settings = ClassificationSwin.arch_zoo[args.arch]
    models = {
        SWIN: DetectionSwin(**settings, **stages),
        FUSED: fused_swin(args.arch, pad_small_map=True, **stages),
        OURS: ours,
        OFFICIAL_MASK: official,
        RELEASED: use_unfolded_form(copy.deepcopy(official)),
    }
    return models, (1, 3, *args.shape)


TASKS: dict[str, Callable] = {'classification': classifiers, 'detection': detectors}


def randomised(model: nn.Module) -> nn.Module:
    """Draw weights with which every layer matters to the result."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if 'gamma' in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.05)
    return model


def measure(
    models: dict[str, nn.Module], images: Tensor, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds a model, over rounds of random order."""

    def run(model: nn.Module) -> float:
        start = clock()
        model(images)
        if images.is_cuda:
            torch.cuda.synchronize()
        return clock() - start

    seconds = {name: [] for name in models}
    for number in range(rounds + 1):
        for name in random.sample(sorted(models), len(models)):
            elapsed = run(models[name])
            if number:  # the first round warms up
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


@torch.inference_mode()
def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    random.seed(0)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    for task in args.tasks:
        models, shape = TASKS[task](args)
        for model in models.values():
            model.eval()
            model.to(device)
        images = torch.rand(shape, device=device)
        same = OURS if task == 'classification' else OFFICIAL_MASK
        clock = time.process_time if args.cpu_time else time.perf_counter
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            error = max(
                float((a - b).abs().max())
                for a, b in zip(models[same](images), models[RELEASED](images))
            )
            seconds = measure(models, images, args.rounds, clock)
        print(
            f'\n{task}, {args.arch}, {"x".join(map(str, shape))}, {args.device}, {args.dtype}, '
            f'{args.threads} threads, {args.rounds} rounds; {RELEASED!r} differs from {same!r} by '
            f'at most {error:.1e}\n'
        )
        print('| model | ms | x the speed of Swin | x the speed of the released form |')
        print('| --- | --- | --- | --- |')
        for name, value in seconds.items():
            print(
                f'| {name} | {value * 1e3:.0f} | {seconds[SWIN] / value:.2f} | '
                f'{seconds[RELEASED] / value:.2f} |'
            )


if __name__ == '__main__':
    main()
