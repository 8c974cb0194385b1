"""Cost of OFQ: training step, int8 runtime, file sizes.

    python -m benchmarks.quantization --parts train runtime onnx size

Baselines run in the same process, in turns: full precision, and OFQ as its official code writes it
(``benchmarks/plain_ofq.py``, which is first checked to give the same gradients).
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.plain_ofq import make_plain
from vitdown.models.backbones import VisionTransformer
from vitdown.models.losses.distillation import kd_loss
from vitdown.models.quantization import integer_copy, save_packed


def build(arch: str, quant_cfg: dict | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(arch, img_size=224, quant_cfg=quant_cfg)
    with torch.no_grad():
        model.eval()(torch.randn(1, 3, 224, 224))
    return model


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each, in turns, after a first round; CPU time of a single thread."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            started = clock()
            run()
            if turn:
                times[name].append(1e3 * (clock() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def print_table(rows: list[list[str]]) -> None:
    for row in (rows[0], ['---'] * len(rows[0]), *rows[1:]):
        print('| ' + ' | '.join(row) + ' |', flush=True)


def training(arch: str, bits: int, batch: int, repeats: int) -> None:
    """Forward and backward, without and with a teacher of the same size."""
    image = torch.randn(batch, 3, 224, 224)
    teacher = build(arch)
    full = build(arch).train()
    ours = build(arch, dict(type='OFQ', w_bits=bits, a_bits=bits)).train()
    plain = make_plain(copy.deepcopy(ours)).train()

    def step(model: nn.Module, teach: str | None = None) -> None:
        model.zero_grad()
        out = model(image)[-1]
        loss = out.square().mean()
        if teach is not None:
            # The official teacher runs in training mode, and gradients go through it, too.
            official = teach == 'official'
            teacher.train(official)
            teacher.zero_grad()
            with torch.set_grad_enabled(official):
                soft = teacher(image)[-1]
            loss = loss + (
                F.cross_entropy(out, soft.softmax(-1)) if official else kd_loss(out, soft)
            )
        loss.backward()

    step(ours)
    step(plain)
    # The official form rounds its weights once more, which flips a code here and there.
    grads = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (ours, plain)]
    cosine = torch.cosine_similarity(*grads, dim=0)
    assert cosine > 0.98, f'the two forms disagree: cosine of the gradients {cosine:.3f}'
    print(f'\n{arch}: cosine of the gradients of both forms {cosine:.5f}')
    times = medians(
        {
            'full precision': lambda: step(full),
            'ours': lambda: step(ours),
            'official form': lambda: step(plain),
            'ours, teacher': lambda: step(ours, 'ours'),
            'official form, teacher': lambda: step(plain, 'official'),
        },
        repeats,
    )
    rows = [['training step', 'ms', 'to full precision', 'official form / this']]
    for name, value in times.items():
        base = times['official form, teacher' if 'teacher' in name else 'official form']
        ratio = '-' if name == 'full precision' else f'{base / value:.2f}'
        rows.append([name, f'{value:.0f}', f'{value / times["full precision"]:.2f}', ratio])
    print(f'\n{arch}, W{bits}A{bits}, batch of {batch}\n')
    print_table(rows)


@torch.no_grad()
def runtime(arch: str, bits: int, batch: int, repeats: int) -> None:
    """Latency of the int8 runtime against full precision."""
    image = torch.randn(batch, 3, 224, 224)
    models = {'float32': build(arch)}
    half = build(arch).bfloat16()
    for label, qkr in (('with QKR', True), ('without QKR', False)):
        fake = build(arch, dict(type='OFQ', w_bits=bits, a_bits=bits, qkr=qkr))
        models[f'fake quantization {label}'] = fake
        models[f'int8 {label}'] = integer_copy(fake)
        off = models[f'int8 {label}'](image)[-1] - fake(image)[-1]
        print(f'{arch} {label}: largest difference {off.abs().max() / fake(image)[-1].std():.1e}')
    runs = {name: lambda m=model: m(image) for name, model in models.items()}
    runs['bfloat16'] = lambda: half(image.bfloat16())
    times = medians(runs, repeats)
    rows = [['latency', 'ms', 'float32 / this']]
    rows += [[n, f'{t:.1f}', f'{times["float32"] / t:.2f}'] for n, t in times.items()]
    print(f'\n{arch}, W{bits}A{bits}, batch of {batch}, {torch.get_num_threads()} thread(s)\n')
    print_table(rows)


@torch.no_grad()
def onnx(arch: str, bits: int, batch: int, repeats: int) -> None:
    """Latency of both flavours of ONNX files in onnxruntime against full precision."""
    from vitdown.deployment.quantized import export_quantized_onnx, quantized_session

    image = torch.randn(batch, 3, 224, 224)
    full = build(arch)
    runs = {'float32, PyTorch': lambda: full(image)}
    with tempfile.TemporaryDirectory() as folder:
        for label, qkr in (('with QKR', True), ('without QKR', False)):
            model = build(arch, dict(type='OFQ', w_bits=bits, a_bits=bits, qkr=qkr))
            for flavour in ('qdq', 'integer'):
                name, path = f'{flavour} {label}', Path(folder) / 'model.onnx'
                # Untrained models turn a code that flips into any difference
                off = export_quantized_onnx(
                    model, path, (224, 224), float('inf'), batch=batch, flavour=flavour
                )
                print(f'{arch}, ONNX {name}: largest difference {off:.1e}', flush=True)
                session = quantized_session(path, torch.get_num_threads())
                runs[name] = lambda s=session: s.run(None, {'images': image.numpy()})
    times = medians(runs, repeats)
    rows = [['latency', 'ms', 'float32 / this']]
    rows += [[n, f'{t:.1f}', f'{times["float32, PyTorch"] / t:.2f}'] for n, t in times.items()]
    print(f'\n{arch}, W{bits}A{bits}, batch of {batch}, {torch.get_num_threads()} thread(s)\n')
    print_table(rows)


def sizes(archs: list[str]) -> None:
    """MiB of packed files."""
    rows = [['packed file, MiB', 'float32', 'W2', 'W3', 'W4', 'W8']]
    with tempfile.TemporaryDirectory() as folder:
        for arch in archs:
            for label, qkr in (('with QKR', True), ('without QKR', False)):
                row = [f'{arch} {label}']
                row.append(f'{sum(p.numel() * 4 for p in build(arch).parameters()) / 2**20:.2f}')
                for bits in (2, 3, 4, 8):
                    model = build(arch, dict(type='OFQ', w_bits=bits, a_bits=bits, qkr=qkr))
                    size = save_packed(model, Path(folder) / 'packed.safetensors')
                    row.append(f'{size / 2**20:.2f}')
                rows.append(row)
    print()
    print_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--archs', nargs='+', default=['deit-tiny', 'deit-small'])
    parser.add_argument('--parts', nargs='+', default=['train', 'runtime', 'onnx', 'size'])
    parser.add_argument('--bits', type=int, default=4)
    parser.add_argument('--batch', type=int, default=4, help='of the training step')
    parser.add_argument('--runtime-batch', type=int, default=1)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for arch in args.archs:
        if 'train' in args.parts:
            training(arch, args.bits, args.batch, args.repeats)
        if 'runtime' in args.parts:
            runtime(arch, args.bits, args.runtime_batch, 2 * args.repeats)
        if 'onnx' in args.parts:
            onnx(arch, args.bits, args.runtime_batch, 2 * args.repeats)
    if 'size' in args.parts:
        sizes(args.archs)


if __name__ == '__main__':
    main()
