"""OFQ against its ablations on CIFAR-10: accuracy and oscillation, several seeds.

    VITDOWN_DATA=FOLDER python -m benchmarks.quantization_cifar10 --seeds 0 1 2 --minutes 30

A small DeiT is trained in full precision; from its weights, and with it as the teacher, every
variant trains in low bits, and OFQ goes on for a second stage with and without confidence-guided
annealing. Results are kept in ``--work-dir``: what is there is not run again, so that the script
can be stopped and started. At the end it prints the table and draws the curves.
"""

import argparse
import json
import math
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdown.datasets import PackedCIFAR
from vitdown.files import write_atomically
from vitdown.models.backbones import VisionTransformer
from vitdown.models.losses import kd_loss
from vitdown.models.quantization import (
    ConfidenceGuidedAnnealing,
    OscillationMonitor,
    convert,
    quantizers_of,
)

VARIANTS = {
    'OFQ': dict(w_quant='statsq', qkr=True),
    'no QKR': dict(w_quant='statsq', qkr=False),
    'LSQ everywhere': dict(w_quant='lsq', qkr=False),
}
ARCH = dict(embed_dims=64, num_layers=4, num_heads=2, feedforward_channels=128)
BATCH = 64
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


def load_split(root: str, split: str) -> tuple[Tensor, Tensor]:
    """Normalised images ``(N, 3, 32, 32)`` and labels."""
    samples = PackedCIFAR(root, split)
    images = np.stack([samples.get_data_info(i)['img'] for i in range(len(samples))])
    images = torch.from_numpy(images[..., ::-1].copy()).permute(0, 3, 1, 2).float()
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    labels = [samples.get_data_info(i)['gt_label'] for i in range(len(samples))]
    return images, torch.tensor(labels)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """One random shift of up to 4 pixels for the batch, a random flip for each image."""
    row, column = torch.randint(0, 9, (2,), generator=generator).tolist()
    images = F.pad(images, [4] * 4)[..., row : row + 32, column : column + 32]
    flip = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(flip, images.flip(-1), images)


class Classifier(nn.Module):
    """Plain ViT and linear classifier."""

    def __init__(self, quant_cfg: dict | None = None) -> None:
        super().__init__()
        self.backbone = VisionTransformer(ARCH, img_size=32, patch_size=4, quant_cfg=quant_cfg)
        self.head = nn.Sequential(nn.Linear(ARCH['embed_dims'], 10))
        if quant_cfg is not None:
            convert(self.head, quant_cfg)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1])


def train(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    steps: int,
    lr: float,
    seed: int,
    teacher: nn.Module | None = None,
    annealing: ConfidenceGuidedAnnealing | None = None,
    min_lr: float = 1e-5,
) -> list[tuple[int, float, float]]:
    """Train by AdamW with a cosine; (step, share of oscillating weights, share in the band)."""
    images, labels = data
    groups = {True: [], False: []}
    for parameter in model.parameters():
        groups[parameter.ndim >= 2].append(parameter)
    optimizer = torch.optim.AdamW(
        [dict(params=groups[True], weight_decay=0.05), dict(params=groups[False], weight_decay=0)],
        lr=lr,
    )
    generator = torch.Generator().manual_seed(seed)
    monitor = OscillationMonitor(model) if teacher is not None else None
    if annealing is not None:
        annealing.attach(optimizer)
    curve, every = [], min(20, steps)
    model.train()
    for step in range(steps):
        rate = min_lr + (lr - min_lr) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group['lr'] = rate * min(1, (step + 1) / 30) if lr > min_lr else rate
        rows = torch.randint(0, len(images), (BATCH,), generator=generator)
        batch = augment(images[rows], generator)
        logits = model(batch)
        loss = F.cross_entropy(logits, labels[rows])
        if teacher is not None:
            with torch.no_grad():
                teacher_logits = teacher(batch)
            loss = loss + kd_loss(logits, teacher_logits, temperature=1.0, alpha=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if monitor is not None:
            monitor.update()
            if (step + 1) % every == 0:
                total = monitor.summary()['total']
                curve.append((step + 1, total['frac'], total['band']))
    if annealing is not None:
        annealing.detach()
    return curve


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Percent of images classified right."""
    model.eval()
    images, labels = data
    hits = sum(
        (model(x).argmax(dim=1) == y).sum().item()
        for x, y in zip(images.split(250), labels.split(250))
    )
    return 100 * hits / len(labels)


# What a result depends on, and the defaults
SETTINGS = dict(fp_steps=1000, steps=250, stage2_steps=60, test_images=2000)


class Experiment:
    """Runs that are kept in a folder, one JSON file and one checkpoint each."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = Path(args.work_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.deadline = time.monotonic() + 60 * args.minutes
        self._data = None

    @property
    def data(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        if self._data is None:
            root = os.environ.get('VITDOWN_DATA')
            if root is None:
                raise SystemExit('Set VITDOWN_DATA to the folder that holds cifar10/')
            root = f'{root}/cifar10'
            images, labels = load_split(root, 'test')
            number = self.args.test_images
            self._data = load_split(root, 'train'), (images[:number], labels[:number])
        return self._data

    @property
    def settings(self) -> dict[str, int]:
        return {name: getattr(self.args, name) for name in SETTINGS}

    def result(self, name: str) -> dict | None:
        path = self.folder / f'{name}.json'
        if not path.is_file():
            return None
        result = json.loads(path.read_text())
        made_with = result.pop('settings', SETTINGS)
        if made_with != self.settings:
            raise SystemExit(
                f'{path} was made with {made_with}, not with {self.settings}; '
                'use another --work-dir'
            )
        return result

    def run(self, name: str, make) -> dict | None:
        """The result of a run: read, or made while there is time."""
        result = self.result(name)
        if result is None and time.monotonic() < self.deadline:
            started = time.monotonic()
            model, result = make()
            result['seconds'] = round(time.monotonic() - started, 1)
            torch.save(model.state_dict(), self.folder / f'{name}.pth')
            content = json.dumps(dict(result, settings=self.settings)).encode()
            write_atomically(content, self.folder / f'{name}.json')
            print(name, {k: v for k, v in result.items() if k != 'curve'}, flush=True)
        return result

    def weights(self, name: str) -> dict:
        return torch.load(self.folder / f'{name}.pth', weights_only=True)

    def full_precision(self, seed: int):
        torch.manual_seed(seed)
        model = Classifier()
        model.backbone.init_weights()
        train(model, self.data[0], self.args.fp_steps, 2e-3, seed)
        return model, dict(accuracy=accuracy(model, self.data[1]))

    def first_stage(self, seed: int, bits: int, variant: str):
        torch.manual_seed(seed)
        teacher = Classifier().eval()
        teacher.load_state_dict(self.weights(f'fp-{seed}'))
        cfg = dict(type='OFQ', w_bits=bits, a_bits=bits, **VARIANTS[variant])
        model = Classifier(cfg)
        model.load_state_dict(teacher.state_dict(), strict=False)
        model.eval()
        with torch.no_grad():
            model(self.data[0][0][:BATCH])
        assert all(quantizer.is_initialized for quantizer in quantizers_of(model))
        before = accuracy(model, self.data[1])
        curve = train(model, self.data[0], self.args.steps, 1e-3, seed, teacher)
        result = dict(before=before, accuracy=accuracy(model, self.data[1]), curve=curve)
        return model, result

    def second_stage(self, seed: int, bits: int, anneal: bool):
        teacher = Classifier().eval()
        teacher.load_state_dict(self.weights(f'fp-{seed}'))
        model = Classifier(dict(type='OFQ', w_bits=bits, a_bits=bits, **VARIANTS['OFQ']))
        model.load_state_dict(self.weights(f'OFQ-w{bits}-{seed}'))
        annealing = ConfidenceGuidedAnnealing(model, 0.005) if anneal else None
        start = OscillationMonitor(model)
        start.update()
        band = start.summary()['total']['band']
        curve = train(
            model, self.data[0], self.args.stage2_steps, 1e-5, seed + 100, teacher, annealing
        )
        result = dict(band_before=band, accuracy=accuracy(model, self.data[1]), curve=curve)
        return model, result

    def run_seed(self, seed: int) -> None:
        if self.run(f'fp-{seed}', lambda: self.full_precision(seed)) is None:
            return
        for bits in self.args.bits:
            for variant in VARIANTS:
                name = f'{variant}-w{bits}-{seed}'
                self.run(name, lambda b=bits, v=variant: self.first_stage(seed, b, v))
            if self.result(f'OFQ-w{bits}-{seed}') is None:
                continue
            for label, anneal in (('CGA', True), ('control', False)):
                name = f'{label}-w{bits}-{seed}'
                self.run(name, lambda b=bits, a=anneal: self.second_stage(seed, b, a))


def spread(values: list[float], digits: int = 1) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f'{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}'


def table(experiment: Experiment, seeds: list[int], bits: list[int]) -> list[list[str]]:
    """Rows of the table, header first."""
    rows = [['model', 'bits', 'top-1', 'before training', 'osc/frac %', 'osc/band %', 'seeds']]
    found = [r for s in seeds if (r := experiment.result(f'fp-{s}'))]
    if found:
        rows.append(['full precision', '32', spread([r['accuracy'] for r in found]), '-', '-', '-',
                     str(len(found))])  # fmt: skip
    labels = {**{v: v for v in VARIANTS}, 'CGA': 'OFQ + CGA stage', 'control': 'OFQ, no CGA'}
    for b in bits:
        for key, label in labels.items():
            found = [r for s in seeds if (r := experiment.result(f'{key}-w{b}-{s}'))]
            if not found:
                continue
            before = spread([r['before'] for r in found]) if 'before' in found[0] else '-'
            ends = [r['curve'][-1] for r in found]
            band = spread([100 * end[2] for end in ends], 2)
            if 'band_before' in found[0]:
                start = spread([100 * r['band_before'] for r in found], 2)
                band = f'{start} -> {band}'
            rows.append([label, f'W{b}A{b}', spread([r['accuracy'] for r in found]), before,
                         spread([100 * end[1] for end in ends], 2), band,
                         str(len(found))])  # fmt: skip
    return rows


def draw(experiment: Experiment, seeds: list[int], bits: list[int], path: str) -> None:
    """Oscillating weights over the steps, one panel a bit-width, mean over the seeds."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(bits), figsize=(3.2 * len(bits), 2.6), squeeze=False)
    for axis, b in zip(axes[0], bits):
        for variant in VARIANTS:
            found = [r for s in seeds if (r := experiment.result(f'{variant}-w{b}-{s}'))]
            if found:
                steps = [point[0] for point in found[0]['curve']]
                shares = np.mean([[100 * p[1] for p in r['curve']] for r in found], axis=0)
                axis.plot(steps, shares, marker='.', label=variant)
        axis.set_title(f'W{b}A{b}', fontsize=9)
        axis.set_xlabel('step', fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0][0].set_ylabel('oscillating weights, %', fontsize=8)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--bits', type=int, nargs='+', default=[2, 3, 4])
    parser.add_argument('--fp-steps', type=int, default=SETTINGS['fp_steps'])
    parser.add_argument('--steps', type=int, default=SETTINGS['steps'])
    parser.add_argument('--stage2-steps', type=int, default=SETTINGS['stage2_steps'])
    parser.add_argument('--test-images', type=int, default=SETTINGS['test_images'])
    parser.add_argument('--minutes', type=float, default=60, help='start no run after that long')
    parser.add_argument('--work-dir', default='work_dirs/quantization_cifar10')
    parser.add_argument('--picture', help='where to draw the curves (PNG)')
    args = parser.parse_args()
    experiment = Experiment(args)
    for seed in args.seeds:
        experiment.run_seed(seed)
    rows = table(experiment, args.seeds, args.bits)
    for row in (rows[0], ['---'] * len(rows[0]), *rows[1:]):
        print('| ' + ' | '.join(row) + ' |')
    if args.picture:
        draw(experiment, args.seeds, args.bits, args.picture)


if __name__ == '__main__':
    main()
