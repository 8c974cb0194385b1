"""NViT: latency of architectures, speed of the pruner, global against other kinds of pruning.

    python benchmarks/nvit.py latency --archs deit-base deit-small revit-s proxy-s --batch-size 8
    python benchmarks/nvit.py pruner --arch deit-base
    python benchmarks/nvit.py prune configs/nvit/nvit-prune_vit-mini_1xb128-1e_cifar10-32x32.py \
        work_dirs/vit-mini_cifar10.pth --latency-table work_dirs/latency_cifar10.json

``prune`` takes a trained model to one share of its latency by each criterion, fine-tunes all of
them alike, and measures what they take here: the blocks, which the table predicts, and the whole
model. Magnitude and random choice rank by their scores alone, without what a unit costs
(``cost_weight=0``). Uniform width needs no training while it prunes; the others' steps of that come
on top of the fine-tuning and are listed. Runs that are done are kept in the work dir.
"""

import argparse
import copy
import hashlib
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from vitdown.checkpoint import load_checkpoint_file
from vitdown.engine.launch import ConfigError, evaluate, load_config, run_tool
from vitdown.files import write_atomically
from vitdown.models.backbones import NViT
from vitdown.models.pruning import (
    GlobalPruner,
    LatencyTable,
    MultiplyAdds,
    Sizes,
    ViTStructure,
    device_name,
    magnitude_scores,
    rank_index,
    save_dense,
    taylor_gate_scores,
    total_cost,
)
from vitdown.models.pruning.measure import time_module
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
    latency.add_argument('--threads', type=int, help='CPU threads')
    pruner = modes.add_parser('pruner', help='scores and events against a loop over units')
    pruner.add_argument('--arch', default='deit-base')
    pruner.add_argument('--repeats', type=int, default=5)
    pruner.add_argument('--threads', type=int, default=1, help='CPU threads')
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
    prune.add_argument('--minutes', type=float, default=math.inf, help='start nothing after these')
    prune.add_argument('--batch-size', type=int, default=64, help='of the latency measured')
    prune.add_argument('--rounds', type=int, default=9, help='of the latency measured')
    prune.add_argument('--threads', type=int, default=1, help='of the latency measured')
    prune.add_argument(
        '--cpu-time', action='store_true', help='as tools/pruning/measure_latency.py'
    )
    prune.add_argument(
        '--work-dir', default='work_dirs/benchmark_nvit', help='results are kept here'
    )
    prune.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
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
    if args.threads:
        torch.set_num_threads(args.threads)
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


def unit_places(pruner: GlobalPruner, number: int, units: list[int]) -> dict[str, list[int]]:
    """What units of one layer are along the axes of the weights, see ``ViTStructure.axes``."""
    layer = pruner.layers[number]
    if layer.kind in ('emb', 'mlp'):
        return {'emb' if layer.block is None else f'mlp.{layer.block}': units}
    heads, qk, v, _ = pruner.structure.sizes.blocks[layer.block]
    if layer.kind == 'head':
        queries = [u * qk + j for u in units for j in range(qk)]
        values = [u * v + j for u in units for j in range(v)]
    else:
        queries = [h * qk + u for h in range(heads) for u in units if layer.kind == 'qk']
        values = [h * v + u for h in range(heads) for u in units if layer.kind == 'v']
    keys = [heads * qk + place for place in queries]
    rows = queries + keys + [2 * heads * qk + place for place in values]
    return {f'qkv.{layer.block}': rows, f'v.{layer.block}': values}


@torch.no_grad()
def loop_event(pruner: GlobalPruner) -> list[Tensor]:
    """Gates after an event of ``GlobalPruner``, and their weights set to zero, group by group."""
    scores = pruner.regularise(pruner.blend(pruner.mean_scores()))
    groups, gates = [], [gate.clone() for gate in pruner.gates]
    for number, layer in enumerate(pruner.layers):
        order = scores[number].argsort(stable=True)
        size = pruner.group_sizes[layer.kind]
        for end in range(size, layer.units + 1, size):
            units = order[end - size : end]
            groups.append((float(scores[number][units].sum()), number, units, end == layer.units))
    index = rank_index(
        pruner.num_events, len(groups), pruner.prune_per_event, pruner.rank_unit, pruner.max_units
    )
    threshold = sorted(group[0] for group in groups)[index]
    parameters = dict(pruner.model.named_parameters())
    for score, number, units, last in groups:
        if score > threshold or last:
            continue
        gates[number][units] = False
        places = {
            axis: torch.tensor(found, dtype=torch.long)
            for axis, found in unit_places(pruner, number, units.tolist()).items()
        }
        for name, axes in pruner.structure.axes.items():
            for dim, axis in enumerate(axes):
                if axis in places:
                    parameters[name].index_fill_(dim, places[axis], 0)
    return gates


def compare_pruner(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
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
    events, loops = [], []
    for _ in range(args.repeats + 1):
        pruner.accumulate()
        state = copy.deepcopy(pruner.state_dict())
        start = time.perf_counter()
        gates = loop_event(pruner)
        loops.append(time.perf_counter() - start)
        pruner.load_state_dict(state)
        start = time.perf_counter()
        pruner.event()
        events.append(time.perf_counter() - start)
        assert all(torch.equal(a, b) for a, b in zip(gates, pruner.gates)), 'the loop differs'
    event, loop = statistics.median(events[1:]), statistics.median(loops[1:])
    gone = sum(int((~gate).sum()) for gate in pruner.gates)
    print(
        f'{device_name(cpu)}, {args.arch}, median of {args.repeats}; {gone} units pruned at the '
        'end, the same by both'
    )
    table(
        [
            ['', 'ours', 'loop', 'ratio'],
            ['scores of a step', f'{fast:.3f} s', f'{slow:.3f} s', f'{slow / fast:.1f}'],
            ['pruning event', f'{event:.3f} s', f'{loop:.3f} s', f'{loop / event:.1f}'],
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


def prune(args: argparse.Namespace, criterion: str, seed: int, out: Path) -> tuple[Path, int]:
    """Config of the dense model of one criterion, its checkpoint beside it, and its steps."""
    name = out / f'pruned_{args.target:g}.pth'
    config = name.with_suffix('.py')
    cfg = load_config(args.config, args.cfg_options)
    out.mkdir(parents=True, exist_ok=True)
    if criterion == 'uniform':
        model = MODELS.build(cfg.model)
        model.load_state_dict(load_checkpoint_file(args.checkpoint)['state_dict'])
        pruner = GlobalPruner(model, LatencyTable.load(args.latency_table), **_groups(cfg))
        gates = uniform_gates(
            pruner.structure, dict(model.named_parameters()), pruner.cost, args.target,
            pruner.group_sizes,
        )  # fmt: skip
        return save_dense(cfg, model, pruner.structure, gates, name), 0
    if not config.exists():
        recipe = out / 'recipe.py'
        cfg.dump(recipe)
        own = [] if criterion in ('nvit', 'paper') else ['--cost-weight', 0]
        options = [f'{key}={value}' for key, value in args.cfg_options.items()]
        run_python(
            'tools/pruning/prune.py', args.config, args.checkpoint, '--target-latency',
            args.target, '--latency-table', args.latency_table, '--saliency', criterion, *own,
            '--recipe', recipe, '--work-dir', out, '--cfg-options', f'randomness.seed={seed}',
            *options,
        )  # fmt: skip
    return config, load_checkpoint_file(name)['meta']['steps']


def _groups(cfg: Config) -> dict:
    hooks = [hook for hook in cfg.get('custom_hooks') or [] if hook['type'] == 'PruningHook']
    return dict(group_sizes=hooks[0].get('group_sizes')) if hooks else {}


def fine_tune(args: argparse.Namespace, config: Path, epochs: int, seed: int) -> Path:
    """Train a pruned model with a falling learning rate; its last checkpoint."""
    cfg = load_config(str(config))
    cfg.optim_wrapper.optimizer.lr = args.lr
    cfg.param_scheduler = dict(type='WarmupCosineLR', warmup_epochs=0, min_lr_ratio=0.01)
    cfg.train_cfg.max_epochs = epochs
    recipe = config.with_name('tuned.py')
    cfg.dump(recipe)
    out = config.with_name('tuned')
    run_python(
        'tools/train.py', recipe, '--work-dir', out, '--resume', '--no-validate',
        '--cfg-options', f'randomness.seed={seed}',
    )  # fmt: skip
    return out / f'epoch_{epochs}.pth'


@torch.inference_mode()
def latency_shares(args: argparse.Namespace, pruned: Config, full: Config) -> tuple[float, float]:
    """Time of a pruned model as a share of the full one's: of the blocks, and of the whole."""
    models = [MODELS.build(cfg.model).eval() for cfg in (pruned, full)]
    images = torch.rand(args.batch_size, 3, *to_2tuple(models[0].backbone.img_size))
    shapes = [model.backbone.pos_embed.shape[1:] for model in models]
    tokens = [torch.rand(args.batch_size, *shape) for shape in shapes]

    def blocks(number: int) -> None:
        x = tokens[number]
        for layer in models[number].backbone.layers:
            x = layer(x)[0]

    def share(run) -> float:
        # In turn, so that other work on the machine slows both alike
        rounds = [
            [time_module(lambda n=n: run(n), images.device, 2, 1, args.cpu_time)[0] for n in (0, 1)]
            for _ in range(args.rounds)
        ]
        return statistics.median(small / large for small, large in rounds)

    return share(blocks), share(lambda number: models[number](images))


def compare_one(args: argparse.Namespace, full: Config, criterion: str, seed: int) -> dict:
    """Results of one criterion and seed; kept in the work dir."""
    out = Path(args.work_dir) / f'{criterion}-{seed}'
    kept = out / 'results.json'
    if kept.exists():
        return json.loads(kept.read_text())
    config, steps = prune(args, criterion, seed, out)
    tuned = fine_tune(args, config, args.epochs, seed)
    cfg = load_config(str(config))
    costs = LatencyTable.load(args.latency_table)
    small, large = (ViTStructure(MODELS.build(c.model)).sizes for c in (cfg, full))
    blocks, whole = latency_shares(args, cfg, full)
    results = {
        'pruning steps': steps,
        'predicted': total_cost(costs, small) / total_cost(costs, large),
        'measured': blocks,
        'whole model': whole,
        'pruned': score(cfg, config.with_suffix('.pth')),
        'fine-tuned': score(cfg, tuned),
    }
    write_atomically(json.dumps(results).encode(), kept)
    return results


def check_work_dir(args: argparse.Namespace) -> None:
    """Note in the work dir what its results are of.

    Raises:
        ConfigError: If they are of something else.
    """
    control = ('mode', 'criteria', 'seeds', 'minutes', 'work_dir')
    settings = {key: value for key, value in vars(args).items() if key not in control}
    for key in ('checkpoint', 'latency_table'):
        settings[key] = hashlib.sha256(Path(settings[key]).read_bytes()).hexdigest()[:16]
    settings = json.loads(json.dumps(settings))  # as they come back
    kept = Path(args.work_dir) / 'settings.json'
    if not kept.exists():
        if any(kept.parent.glob('*/results.json')):
            raise ConfigError(
                f'{args.work_dir} holds results without their settings; name another --work-dir'
            )
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(json.dumps(settings).encode(), kept)
    found = json.loads(kept.read_text())
    if changed := [key for key in settings if found.get(key) != settings[key]]:
        raise ConfigError(
            f'{args.work_dir} holds results with another {" and ".join(changed)}; name another '
            '--work-dir'
        )


def score(cfg: Config, checkpoint: Path | str) -> float:
    """mAP of a re-ID model, top-1 accuracy of a classifier, percent."""
    metrics = evaluate(cfg, str(checkpoint))
    return metrics['reid/mAP' if 'reid/mAP' in metrics else 'accuracy/top1']


def compare_criteria(args: argparse.Namespace) -> None:
    check_work_dir(args)
    torch.set_num_threads(args.threads)
    end = time.monotonic() + 60 * args.minutes
    full = load_config(args.config, args.cfg_options)
    full.custom_hooks = []
    print(f'Before pruning: {score(full, args.checkpoint):.1f} %')
    done: dict[str, list[dict]] = {criterion: [] for criterion in args.criteria}
    for seed in args.seeds:
        for criterion in args.criteria:
            kept = (Path(args.work_dir) / f'{criterion}-{seed}/results.json').exists()
            if kept or time.monotonic() < end:
                done[criterion].append(compare_one(args, full, criterion, seed))
    names = ('pruning steps', 'predicted', 'measured', 'whole model', 'pruned', 'fine-tuned')
    rows = [['criterion', 'seeds', *names]]
    for criterion, results in done.items():
        cells = [spread([result[name] for result in results]) for name in names if results]
        rows.append([criterion, str(len(results)), *(cells or ['-'] * len(names))])
    table(rows)
    if any(len(results) < len(args.seeds) for results in done.values()):
        print('The time is up; the same command goes on.')


def spread(values: list[float]) -> str:
    digits = 1 if max(values) > 1 else 2
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f'{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}'


def main() -> None:
    args = parse_args()
    modes = dict(latency=compare_latency, pruner=compare_pruner, prune=compare_criteria)
    modes[args.mode](args)


if __name__ == '__main__':
    run_tool(main)
