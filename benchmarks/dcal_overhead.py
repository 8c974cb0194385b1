"""What DCAL costs over its baseline: time of training steps and of inference, beside multiply-adds.

Every round runs all variants once, in an order drawn anew; the table gives the medians over the
rounds and ratios to the baseline, and the ratio that the multiply-adds let expect. In evaluation a
model with PWCA is the one without. On a CPU it is processor time that counts, of all threads
together, so that other processes disturb little.

    python -m benchmarks.dcal_overhead --arch deit-small --img-size 256 128 --batch-size 64
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from mmengine.logging import MMLogger
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.train_table import print_table
from vitdown.engine.launch import run_tool
from vitdown.registry import MODELS

MINI = dict(embed_dims=128, num_layers=6, num_heads=4, feedforward_channels=512)
BASELINE = 'baseline'
HEADS = {
    BASELINE: dict(type='BNNeckHead'),
    '+GLCA': dict(type='DCALHead', pwca=None),
    '+PWCA': dict(type='DCALHead', glca=None),
    'DCAL': dict(type='DCALHead'),
    "DCAL, pool='mean'": dict(type='DCALHead', glca=dict(pool='mean')),
}
NUM_INSTANCES = 4


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--arch', default='mini', help="'mini' or a name that the backbone knows")
    parser.add_argument('--img-size', type=int, nargs=2, default=(128, 64))
    parser.add_argument('--patch-size', type=int, default=16)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--warmup', type=int, default=1)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser.parse_args()


def build(args: argparse.Namespace, head: dict) -> nn.Module:
    backbone = dict(
        type='VisionTransformer',
        arch=dict(MINI) if args.arch == 'mini' else args.arch,
        img_size=tuple(args.img_size),
        patch_size=args.patch_size,
        out_type='cls_token',
    )
    vit = MODELS.build(backbone)
    head = dict(num_classes=751, in_channels=vit.embed_dims, **head)
    model = MODELS.build(dict(type='ReIdentifier', backbone=backbone, head=head))
    model.init_weights()
    return model.to(args.device)


def training_step(
    model: nn.Module, images: Tensor, samples: list[DataSample]
) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        model.train()
        loss, _ = model.parse_losses(model(images, samples, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def inference(model: nn.Module, images: Tensor) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        model.eval()
        model(images)

    return run


def multiply_adds(run: Callable[[], None]) -> int:
    # Fused attention kernels are opaque to the counter on some devices.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def medians(
    runs: dict[str, Callable[[], None]], rounds: int, warmup: int, device: torch.device
) -> dict[str, float]:
    clock = time.perf_counter if device.type == 'cuda' else time.process_time
    seconds = {name: [] for name in runs}
    order = list(runs)
    for round_ in range(warmup + rounds):
        random.Random(round_).shuffle(order)
        for name in order:
            if device.type == 'cuda':
                torch.cuda.synchronize(device)
            start = clock()
            runs[name]()
            if device.type == 'cuda':
                torch.cuda.synchronize(device)
            if round_ >= warmup:
                seconds[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    args = parse_args()
    MMLogger.get_instance('benchmark', log_level='ERROR')
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    images = torch.randn(args.batch_size, 3, *args.img_size, device=device)
    labels = torch.arange(args.batch_size, device=device) // NUM_INSTANCES
    samples = [DataSample(gt_label=label.view(1)) for label in labels]
    models = {name: build(args, head) for name, head in HEADS.items()}
    place = torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'
    print(
        f'{place}, {args.threads} threads, {args.arch}, {args.img_size[0]}x{args.img_size[1]}, '
        f'batch {args.batch_size}, {args.rounds} rounds\n'
    )
    tasks = {
        'training step': {
            name: training_step(model, images, samples) for name, model in models.items()
        },
        'inference': {name: inference(model, images) for name, model in models.items()},
    }
    rows = []
    for task, runs in tasks.items():
        cost = {name: multiply_adds(run) for name, run in runs.items()}
        times = medians(runs, args.rounds, args.warmup, device)
        rows += [
            [
                task,
                name,
                f'{times[name] * 1e3:.0f}',
                f'{times[name] / times[BASELINE]:.2f}',
                f'{cost[name] / cost[BASELINE]:.2f}',
            ]
            for name in runs
        ]
    print_table(['', 'model', 'ms / batch', 'time ratio', 'multiply-add ratio'], rows)


if __name__ == '__main__':
    run_tool(main)
