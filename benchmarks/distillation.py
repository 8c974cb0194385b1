"""Time the distillation losses against plain forms, and a step of NKD against its floor.

Plain forms drop columns by a boolean mask and sort twice, as the formulas read. The floor of a step
is what cannot be saved: the teacher's forward pass and the student's step without distillation.
Medians of interleaved repeats.

    python benchmarks/distillation.py --threads 1
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample
from torch import Tensor

from vitdown.models.distillation import Distiller, FrozenTeacher, build_losses
from vitdown.models.losses import nkd_loss, uskd_loss
from vitdown.registry import MODELS


def interleaved(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each function; they take turns, so that all meet the same disturbances."""
    times = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if repeat:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def plain_nkd(zs: Tensor, zt: Tensor, target: Tensor, gamma: float = 1.5) -> Tensor:
    num, classes = zs.shape
    label = target[:, None]
    log_s, t = F.log_softmax(zs, 1), F.softmax(zt, 1)
    target_part = -(t.gather(1, label) * log_s.gather(1, label)).mean()
    others = torch.ones_like(zs).scatter_(1, label, 0).bool()
    zs, zt = zs[others].reshape(num, -1), zt[others].reshape(num, -1)
    nontarget = -(F.softmax(zt, 1) * F.log_softmax(zs, 1)).sum(1).mean()
    return target_part + gamma * nontarget


def plain_uskd(zs: Tensor, weak: Tensor, target: Tensor, beta=0.1, mu=0.005) -> Tensor:
    num, classes = zs.shape
    label = target[:, None]
    s, log_s = F.softmax(zs, 1), F.log_softmax(zs, 1)
    value = s.gather(1, label).detach() ** 2
    target_part = -((value + 1 - value.mean(0)) * log_s.gather(1, label)).sum(1).mean()
    smoothed = torch.full_like(weak, 0.1 / classes).scatter_(1, label, 0.9 + 0.1 / classes)
    weak_part = -mu * (smoothed * F.log_softmax(weak, 1)).sum(1).mean()
    w = F.softmax(weak, 1)
    rank = w / (1 - w.gather(1, label) + 1e-6) + log_s / (1 - log_s.gather(1, label) + 1e-6)
    _, order = rank.sort(1, descending=True)
    _, position = order.sort(1)
    zipf = (1 / torch.arange(1, classes + 1.0))[None].repeat(num, 1).gather(1, position)
    others = torch.ones_like(zs).scatter_(1, label, 0).bool()
    zipf = zipf[others].reshape(num, -1)
    zipf = (zipf / zipf.sum(1, keepdim=True)).detach()
    log_others = F.log_softmax(zs[others].reshape(num, -1), 1)
    return target_part - beta * (zipf * log_others).sum(1).mean() + weak_part


def time_losses(batch: int, classes: int, repeats: int) -> None:
    zs = torch.randn(batch, classes, requires_grad=True)
    other = torch.randn(batch, classes)
    weak = other.clone().requires_grad_()
    target = torch.randint(classes, (batch,))

    def step(loss: Callable, second: Tensor) -> Callable[[], None]:
        return lambda: loss(zs, second, target).backward()

    functions = {
        'NKD plain': step(plain_nkd, other),
        'NKD': step(nkd_loss, other),
        'USKD plain': step(plain_uskd, weak),
        'USKD': step(uskd_loss, weak),
    }
    torch.testing.assert_close(plain_nkd(zs, other, target), nkd_loss(zs, other, target))
    torch.testing.assert_close(plain_uskd(zs, weak, target), uskd_loss(zs, weak, target))
    seconds = interleaved(functions, repeats)
    for name in ('NKD', 'USKD'):
        ours, plain = seconds[name], seconds[f'{name} plain']
        print(f'| {name} | {plain * 1e3:.1f} ms | {ours * 1e3:.1f} ms | {plain / ours:.2f} |')


def build(depth: int, width: int) -> torch.nn.Module:
    head = dict(type='mmpretrain.LinearClsHead', num_classes=100, in_channels=4 * width)
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor', num_classes=100),
            backbone=dict(type='vitdown.CIFARResNet', depth=depth, base_channels=width),
            neck=dict(type='mmpretrain.GlobalAveragePooling'),
            head={**head, 'loss': dict(type='mmpretrain.CrossEntropyLoss')},
        )
    )


def time_step(batch: int, repeats: int) -> None:
    student, teacher = build(14, 16).train(), build(20, 16).eval()
    inputs = torch.rand(batch, 3, 32, 32)
    samples = [DataSample().set_gt_label(i % 100) for i in range(batch)]
    losses = build_losses(dict(loss_nkd=dict(type='NKDLoss')))
    distiller = Distiller(student, losses, FrozenTeacher(teacher))

    def floor() -> None:
        with torch.no_grad():
            teacher(inputs)
        sum(student(inputs, samples, mode='loss').values()).backward()

    def distill() -> None:
        with distiller.record(inputs, samples) as seen:
            own = student(inputs, samples, mode='loss')
        sum(distiller.add_to(own, seen, samples).values()).backward()

    seconds = interleaved(dict(floor=floor, distill=distill), repeats)
    ratio = seconds['distill'] / seconds['floor']
    print(f'| {seconds["floor"] * 1e3:.0f} ms | {seconds["distill"] * 1e3:.0f} ms | {ratio:.3f} |')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--repeats', type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    init_default_scope('vitdown')
    print('| loss, 256 x 1000, forward and backward | plain | ours | plain / ours |')
    print('| --- | --- | --- | --- |')
    time_losses(256, 1000, args.repeats)
    print('\n| teacher forward + student step | NKD step | ratio |\n| --- | --- | --- |')
    time_step(64, args.repeats)


if __name__ == '__main__':
    main()
