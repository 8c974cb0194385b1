"""NViT: latency of architectures, speed of the pruner, global against other kinds of pruning.

    python benchmarks/nvit.py latency --archs deit-base deit-small revit-s proxy-s --batch-size 8
    python benchmarks/nvit.py pruner --arch deit-base
    python benchmarks/nvit.py prune configs/nvit/nvit-prune_vit-mini_1xb64-40e_synthetic-128x64.py \
        work_dirs/vit-mini.pth --latency-table work_dirs/latency_vit-mini.json --seeds 0 1 2

``prune`` takes a trained re-ID model to one share of its latency by each criterion, fine-tunes all
of them for the same number of epochs, and measures what they take on this machine.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from vitdown.checkpoint import load_checkpoint_file
from vitdown.engine.launch import evaluate, load_config, run_tool
from vitdown.models.backbones import NViT
from vitdown.models.pruning import (
    GlobalPruner,
    LatencyTable,
    MultiplyAdds,
    Sizes,
    ViTStructure,
    device_name,
    magnitude_scores,
    save_dense,
    taylor_gate_scores,
    total_cost,
)
from vitdown.models.pruning.saliency import NVIT_NORM
from vitdown.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    modes = parser.add_subparsers(dest='mode', required=True)
    latency = modes.add_parser('latency', help='forward passes of whole architectures')
    latency.add_argument('--archs', nargs='+', default=['deit-base', 'deit-small', 'revit-s'])
    latency.add_argument('--img-size', type=int, default=224)
    latency.add_argument('--batch-size', type=int, default=8)
    latency.add_argument('--repeats', type=int, default=7)
    latency.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    pruner = modes.add_parser('pruner', help='scores and events against a loop over units')
    pruner.add_argument('--arch', default='deit-base')
    pruner.add_argument('--repeats', type=int, default=5)
    prune = modes.add_parser('prune', help='criteria against each other, fine-tuned alike')
    prune.add_argument('config', help='config with a PruningHook')
    prune.add_argument('checkpoint', help='checkpoint of the model before pruning')
    prune.add_argument('--latency-table', required=True)
    prune.add_argument('--target', type=float, default=0.5)
    prune.add_argument(
        '--criteria', nargs='+', default=['nvit', 'magnitude', 'random', 'uniform'],
        choices=['nvit', 'paper', 'magnitude', 'random', 'uniform'],
    )  # fmt: skip
    prune.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    prune.add_argument('--epochs', type=int, default=5, help='of fine-tuning')
    prune.add_argument('--lr', type=float, default=5e-4, help='of fine-tuning')
    prune.add_argument('--batch-size', type=int, default=64, help='of the latency measured')
    prune.add_argument('--work-dir', default='work_dirs/benchmark_nvit')
    prune.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    return parser.parse_args()


def table(rows: list[list[str]]) -> None:
    head, *body = rows
    for row in (head, ['---'] * len(head), *body):
        print('| ' + ' | '.join(row) + ' |')


def median_seconds(run, repeats: int, device: torch.device) -> float:
    def once() -> float:
        start = time.perf_counter()
        run()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(repeats))


@torch.inference_mode()
def compare_latency(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    images = torch.rand(args.batch_size, 3, args.img_size, args.img_size, device=device)
    models = {
        arch: NViT(arch, args.img_size, with_dist_token=True).eval().to(device)
        for arch in args.archs
    }
    # In turn, so that other work on the machine slows all of them alike
    rounds = [
        [median_seconds(lambda m=model: m(images), 1, device) for model in models.values()]
        for _ in range(args.repeats)
    ]
    seconds = {arch: statistics.median(times) for arch, times in zip(models, zip(*rounds))}
    first = seconds[args.archs[0]]
    print(f'{device_name(device)}, float32, batch {args.batch_size}, median of {args.repeats}')
    rows = [['arch', 'parameters', 'seconds', f'speed-up over {args.archs[0]}']]
    for arch, model in models.items():
        params = sum(p.numel() for p in model.parameters())
        rows.append(
            [arch, f'{params / 1e6:.2f} M', f'{seconds[arch]:.3f}', f'{first / seconds[arch]:.2f}']
        )
    table(rows)


def qkv_rows(structure: ViTStructure, block: int) -> list[slice]:
    """Rows of queries, keys and values in their joined weight."""
    heads, qk, v, _ = structure.sizes.blocks[block]
    ends = np.cumsum([0, heads * qk, heads * qk, heads * v]).tolist()
    return [slice(begin, end) for begin, end in zip(ends, ends[1:])]


@torch.no_grad()
def loop_scores(structure: ViTStructure, parameters: dict[str, nn.Parameter]) -> list[Tensor]:
    """The scores of ``taylor_gate_scores`` with a product for every use of a weight."""

    def products(name: str) -> Tensor:
        return parameters[name] * parameters[name].grad

    def clean(total: Tensor) -> Tensor:
        return torch.zeros_like(total) if not torch.isfinite(total).all() else total

    blocks = range(len(structure.sizes.blocks))
    emb = clean(products('patch_embed.projection.weight').sum((1, 2, 3)))
    emb = clean(emb + products('patch_embed.projection.bias'))
    for block in blocks:
        for part in qkv_rows(structure, block):
            emb = clean(emb + products(f'layers.{block}.attn.qkv.weight')[part].sum(0))
        for name in ('attn.proj', 'ffn.layers.1'):
            emb = clean(emb + products(f'layers.{block}.{name}.weight').sum(1))
            emb = clean(emb + products(f'layers.{block}.{name}.bias'))
        emb = clean(emb + products(f'layers.{block}.ffn.layers.0.0.weight').sum(0))
    scores = [(emb / NVIT_NORM['emb']).square()]
    for block, (heads, *_) in enumerate(structure.sizes.blocks):
        name = f'layers.{block}.attn.qkv.'
        head = 0
        for part in qkv_rows(structure, block):
            rows = products(f'{name}weight')[part].sum(1) + products(f'{name}bias')[part]
            head = clean(head + rows.view(heads, -1).sum(1))
        query, _, value = qkv_rows(structure, block)
        channels = [
            clean(
                (products(f'{name}weight')[part].sum(1) + products(f'{name}bias')[part])
                .view(heads, -1)
                .sum(0)
            )
            for part in (query, value)
        ]
        mlp = products(f'layers.{block}.ffn.layers.0.0.weight').sum(1)
        mlp = clean(mlp + products(f'layers.{block}.ffn.layers.0.0.bias'))
        sums = (head, *channels, mlp)
        scores += [
            (total / NVIT_NORM[kind]).square()
            for kind, total in zip(('head', 'qk', 'v', 'mlp'), sums)
        ]
    return scores


def compare_pruner(args: argparse.Namespace) -> None:
    model = NViT(args.arch, 224)
    model.init_weights()
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    structure = ViTStructure(model)
    pruner = GlobalPruner(model, MultiplyAdds(197))
    cpu = torch.device('cpu')
    parameters = dict(model.named_parameters())
    ours = taylor_gate_scores(structure, parameters)
    for own, other in zip(ours, loop_scores(structure, parameters)):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-9)
    fast = median_seconds(pruner.accumulate, args.repeats, cpu)
    slow = median_seconds(lambda: loop_scores(structure, parameters), args.repeats, cpu)
    pruner.event()
    events = []
    for _ in range(args.repeats):
        pruner.accumulate()
        start = time.perf_counter()
        pruner.event()
        events.append(time.perf_counter() - start)
    print(f'{device_name(cpu)}, {args.arch}, median of {args.repeats}')
    table(
        [
            ['', 'one product a weight', 'one a use', 'ratio'],
            ['scores of a step', f'{fast:.3f} s', f'{slow:.3f} s', f'{slow / fast:.1f}'],
            ['pruning event', f'{statistics.median(events):.3f} s', '', ''],
        ]
    )


def uniform_gates(structure: ViTStructure, parameters: dict, cost, target: float, groups: dict):
    """Every layer narrowed by one factor, largest weights kept: a smaller ViT of the same shape."""
    scores = magnitude_scores(structure, parameters)
    full = total_cost(cost, structure.sizes)
    for share in np.linspace(1, 0, 101):
        gates = []
        for layer, score in zip(structure.layers, scores):
            size = groups[layer.kind]
            kept = max(size, round(share * layer.units / size) * size)
            gate = torch.zeros(layer.units, dtype=torch.bool)
            gates.append(gate.index_fill(0, score.topk(kept).indices, True))
        if total_cost(cost, Sizes.from_counts(structure.counts(gates))) <= target * full:
            return gates
    raise ValueError(f'No uniform width reaches {target}')


def run_python(*args) -> None:
    subprocess.run(
        [sys.executable, *map(str, args)], check=True, stdout=subprocess.DEVNULL, cwd=ROOT
    )


def prune(args: argparse.Namespace, criterion: str, seed: int, out: Path) -> Path:
    """Config of the dense model of one criterion, its checkpoint beside it."""
    name = out / f'pruned_{args.target:g}.pth'
    if name.with_suffix('.py').exists():
        return name.with_suffix('.py')
    if criterion != 'uniform':
        # Baselines rank by their own scores alone; NViT's also knows what a unit costs.
        own = [] if criterion in ('nvit', 'paper') else ['--cost-weight', 0]
        run_python(
            'tools/pruning/prune.py', args.config, args.checkpoint, '--target-latency',
            args.target, '--latency-table', args.latency_table, '--saliency', criterion, *own,
            '--work-dir', out, '--cfg-options', f'randomness.seed={seed}', *args.cfg_options,
        )  # fmt: skip
        return name.with_suffix('.py')
    cfg = load_config(args.config)
    model = MODELS.build(cfg.model)
    model.load_state_dict(load_checkpoint_file(args.checkpoint)['state_dict'])
    pruner = GlobalPruner(model, LatencyTable.load(args.latency_table), **_groups(cfg))
    gates = uniform_gates(
        pruner.structure, dict(model.named_parameters()), pruner.cost, args.target,
        pruner.group_sizes,
    )  # fmt: skip
    return save_dense(cfg, model, pruner.structure, gates, name)


def _groups(cfg: Config) -> dict:
    hooks = [hook for hook in cfg.get('custom_hooks') or [] if hook['type'] == 'PruningHook']
    return dict(group_sizes=hooks[0].get('group_sizes')) if hooks else {}


@torch.inference_mode()
def forward_seconds(cfg: Config, batch_size: int) -> float:
    model = MODELS.build(cfg.model).eval()
    images = torch.rand(batch_size, 3, *model.backbone.img_size)
    return median_seconds(lambda: model(images), 15, torch.device('cpu'))


def compare_criteria(args: argparse.Namespace) -> None:
    full = load_config(args.config)
    full.custom_hooks = []
    seconds = forward_seconds(full, args.batch_size)
    before = evaluate(full, args.checkpoint)['reid/mAP']
    print(f'Before pruning: mAP {before:.1f} %, {1e3 * seconds:.1f} ms a batch')
    table_ = LatencyTable.load(args.latency_table)
    rows = [['criterion', 'predicted', 'measured', 'mAP pruned', 'mAP fine-tuned']]
    for criterion in args.criteria:
        columns = []
        for seed in args.seeds:
            out = Path(args.work_dir) / f'{criterion}-{seed}'
            config = prune(args, criterion, seed, out)
            run_python(
                'tools/train.py', config, '--work-dir', out / 'tuned', '--resume', '--no-validate',
                '--cfg-options', f'train_cfg.max_epochs={args.epochs}', f'randomness.seed={seed}',
                f'optim_wrapper.optimizer.lr={args.lr}', *args.cfg_options,
            )  # fmt: skip
            cfg = load_config(str(config))
            sizes = ViTStructure(MODELS.build(cfg.model)).sizes
            whole = ViTStructure(MODELS.build(full.model)).sizes
            columns.append(
                (
                    total_cost(table_, sizes) / total_cost(table_, whole),
                    forward_seconds(cfg, args.batch_size) / seconds,
                    evaluate(cfg, str(config.with_suffix('.pth')))['reid/mAP'],
                    evaluate(cfg, str(out / f'tuned/epoch_{args.epochs}.pth'))['reid/mAP'],
                )
            )
        cells = [spread(values) for values in zip(*columns)]
        rows.append([criterion, *cells])
    table(rows)


def spread(values: tuple[float, ...]) -> str:
    digits = 1 if max(values) > 1 else 2
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f'{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}'


def main() -> None:
    args = parse_args()
    modes = dict(latency=compare_latency, pruner=compare_pruner, prune=compare_criteria)
    modes[args.mode](args)


if __name__ == '__main__':
    run_tool(main)
