"""Accuracy against multiply-adds of a small ViT on CIFAR-10, with and without token fusion.

Trains the plain model, fine-tunes it with MCTF and consistency, and, as a control, with neither;
then evaluates each with several policies, one of them a control too: tokens fused at random. Runs
that were interrupted go on.

    python benchmarks/token_fusion_accuracy.py --seeds 0 1 2
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from vitdown.checkpoint import find_resumable_checkpoint
from vitdown.engine.complexity import get_flops
from vitdown.engine.launch import evaluate, load_config
from vitdown.models.token_fusion import Assignment, ToMe, cosine_scores, match_bipartite
from vitdown.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]
PLAIN = ROOT / 'configs/mctf/vit-mini_1xb128-10e_cifar10-32x32.py'
MCTF = ROOT / 'configs/mctf/mctf-r8_vit-mini_1xb128-3e_cifar10-32x32.py'
POLICIES = {
    'no fusion': None,
    **{f'ToMe r={r}': dict(type='ToMe', r=r) for r in (4, 7, 9, 13, 24)},
    **{f'MCTF r={r}': dict(type='MCTF', r=r) for r in (5, 8, 11, 24)},
    'MCTF r=20, all blocks': dict(type='MCTF', r=20, layers=[*range(6)], min_tokens=2),
    **{f'random r={r}': dict(type='RandomFusion', r=r) for r in (9, 13, 24)},
}


@MODELS.register_module()
class RandomFusion(ToMe):
    """ToMe with random scores: as many tokens of the same two sets fuse, whatever they are."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.generator = torch.Generator().manual_seed(0)

    def match(self, key: Tensor, r: int) -> Assignment:
        shape = cosine_scores(key.mean(dim=1), self.num_protected).shape
        scores = torch.rand(shape, generator=self.generator).to(key.device)
        return match_bipartite(scores, r, self.num_protected)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--work-dir', default='work_dirs/token_fusion_accuracy')
    return parser.parse_args()


def train(config: Path, seed: int, work_dir: Path, **options: str) -> str:
    """Train and return the last checkpoint."""
    options = [f'randomness.seed={seed}', *(f'{k}={v}' for k, v in options.items())]
    subprocess.run(
        [sys.executable, str(ROOT / 'tools/train.py'), str(config), '--work-dir', str(work_dir),
         '--resume', '--no-validate', '--cfg-options', *options],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return find_resumable_checkpoint(work_dir)


def accuracy(checkpoint: str, policy: dict | None, work_dir: Path) -> float:
    cfg = load_config(str(PLAIN), {'log_level': 'ERROR'}, str(work_dir))
    cfg.model.backbone.token_fusion = policy
    return evaluate(cfg, checkpoint)['accuracy/top1']


def cost(policy: dict | None) -> float:
    """Million multiply-adds of an image."""
    cfg = load_config(str(PLAIN))
    cfg.model.backbone.token_fusion = policy
    return get_flops(MODELS.build(cfg.model), (3, 32, 32)).macs / 1e6


def main() -> None:
    args = parse_args()
    results: dict[tuple[str, str], list[float]] = {}
    for seed in args.seeds:
        work_dir = Path(args.work_dir) / f'seed{seed}'
        plain = train(PLAIN, seed, work_dir / 'plain')
        checkpoints = {
            'off the shelf': plain,
            'fine-tuned, no fusion': train(
                MCTF, seed, work_dir / 'control', load_from=plain,
                **{'model.backbone.token_fusion': 'None', 'custom_hooks': '[]'},
            ),
            'fine-tuned, MCTF r=8': train(MCTF, seed, work_dir / 'mctf', load_from=plain),
        }  # fmt: skip
        for weights, checkpoint in checkpoints.items():
            for name, policy in POLICIES.items():
                value = accuracy(checkpoint, policy, work_dir / 'evaluation')
                results.setdefault((weights, name), []).append(value)
                print(f'seed {seed}, {weights}, {name}: {value:.2f}', flush=True)
    print('\n| weights | policy | M multiply-adds | top-1 |')
    print('| --- | --- | --- | --- |')
    for (weights, name), values in results.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        top1 = f'{statistics.mean(values):.1f} ± {spread:.1f}'
        print(f'| {weights} | {name} | {cost(POLICIES[name]):.1f} | {top1} |')


if __name__ == '__main__':
    main()
