"""Time SMMix: the mixing against unfold and fold, a training step against one with CutMix.

An SMMix step averages its two kinds: half of the batches have a clean pass and regions, half Mixup.
By multiply-adds that is 3.5 forward passes against 3, a ratio of 1.17. Full precision, medians of
interleaved repeats.

    python benchmarks/smmix.py --threads 1
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from mmpretrain.models.utils.batch_augments import CutMix
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from vitdown.engine.hooks import SMMixHook
from vitdown.models.mixing import draw_mix, flip_partner, paste_regions, pick_regions
from vitdown.models.mixing.smmix import Regions, TokenGeometry
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


def unfold_and_fold(x: Tensor, regions: Regions, side: int, cell: int) -> Tensor:
    """The mixing by matrices of all cells, as it is usually written."""
    batch, channels, height, width = x.shape
    size = regions.size[0]
    cells = F.unfold(x, cell, stride=cell).transpose(1, 2).reshape(batch * side**2, -1)
    numbers = torch.arange(side**2, dtype=torch.float32).view(1, 1, side, side)
    windows = F.unfold(numbers, size)[0].T.long()
    first = torch.arange(batch)[:, None] * side**2
    target = (windows[regions.target] + first).flatten()
    source = (windows[regions.source] + first).flip(0).flatten()
    mixed = cells.clone()
    mixed[target] = cells[source]
    mixed = mixed.reshape(batch, side**2, -1).transpose(1, 2)
    return F.fold(mixed, (height, width), cell, stride=cell)


def time_mixing(batch: int, repeats: int) -> None:
    side, cell = 14, 16
    x = torch.rand(batch, 3, side * cell, side * cell)
    attention = torch.rand(batch, side**2)
    geometry = TokenGeometry((side, side), (cell, cell), (cell, cell))
    partner = flip_partner(batch)
    for size in (4, 7, 10):
        regions = pick_regions(attention, (side, side), (size, size))
        functions = dict(
            plain=lambda regions=regions: unfold_and_fold(x, regions, side, cell),
            ours=lambda regions=regions: paste_regions(x, regions, partner, geometry),
        )
        assert torch.equal(functions['plain'](), functions['ours']())
        plain, ours = interleaved(functions, repeats).values()
        print(f'| {size} x {size} | {plain:.3f} s | {ours:.3f} s | {plain / ours:.1f} |')


class Step:
    """Forward and backward pass of a DeiT-T with ImageNet's sizes, mixing included."""

    def __init__(self, batch: int, classes: int = 1000) -> None:
        self.images = torch.rand(batch, 3, 224, 224)
        self.labels = torch.randint(classes, (batch,))
        self.classes = classes
        self.model = self._build(classes)
        self.cutmix = CutMix(1.0)
        self.hooked = self._build(classes)
        self.hook = SMMixHook(seed=0)
        self.hook.prepare(self.hooked)
        self.hook.watch(self.hooked)

    @staticmethod
    def _build(classes: int) -> nn.Module:
        return MODELS.build(
            dict(
                type='mmpretrain.ImageClassifier',
                data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor', num_classes=1000),
                backbone=dict(type='vitdown.VisionTransformer', arch='deit-tiny'),
                head=dict(
                    type='mmpretrain.VisionTransformerClsHead',
                    num_classes=classes,
                    in_channels=192,
                    loss=dict(type='mmpretrain.CrossEntropyLoss'),
                ),
            )
        ).train()

    def _samples(self) -> list[DataSample]:
        return [DataSample().set_gt_label(label) for label in self.labels.tolist()]

    def with_cutmix(self) -> None:
        scores = F.one_hot(self.labels, self.classes)
        mixed, scores = self.cutmix(self.images.clone(), scores)
        samples = [s.set_gt_score(score) for s, score in zip(self._samples(), scores)]
        sum(self.model(mixed, samples, mode='loss').values()).backward()

    def with_regions(self) -> None:
        self._smmix(1.0)

    def with_mixup(self) -> None:
        self._smmix(0.0)

    def _smmix(self, switch_prob: float) -> None:
        self.hook.draw = partial(draw_mix, switch_prob=switch_prob)
        self.hook.iteration += 1  # sizes of regions follow from it
        losses = self.hooked(inputs=self.images, data_samples=self._samples(), mode='loss')
        sum(losses.values()).backward()


def time_step(batch: int, repeats: int) -> None:
    step = Step(batch)
    functions = dict(cutmix=step.with_cutmix, regions=step.with_regions, mixup=step.with_mixup)
    seconds = interleaved(functions, repeats)
    mean = (seconds['regions'] + seconds['mixup']) / 2
    cells = [f'{seconds[name]:.2f} s' for name in functions]
    print(f'| {" | ".join(cells)} | {mean:.2f} s | {mean / seconds["cutmix"]:.3f} |')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--repeats', type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    init_default_scope('vitdown')
    print('| region, 64 images of 224 | unfold, fold | ours | ratio |\n| --- | --- | --- | --- |')
    time_mixing(64, args.repeats)
    print('\n| CutMix step | regions | Mixup | SMMix, mean | SMMix / CutMix |')
    print('| --- | --- | --- | --- | --- |')
    time_step(16, args.repeats)


if __name__ == '__main__':
    main()
