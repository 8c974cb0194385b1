"""Train configs with several seeds and print a table: mean and spread, beside untrained models.

    python benchmarks/train_table.py configs/reid/vit-mini_1xb64-40e_omniglot-64x64.py --seeds 0 1 2

Runs that were interrupted go on, finished ones are only evaluated again.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from vitdown.checkpoint import find_resumable_checkpoint
from vitdown.engine.launch import evaluate, load_config, run_tool

ROOT = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='+')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--work-dir', default='work_dirs/train_table')
    parser.add_argument(
        '--metrics', nargs='+', default=['reid/mAP', 'reid/CMC@1', 'reid/CMC@10', 'reid/mINP']
    )
    return parser.parse_args()


def run_seed(config: str, seed: int, work_dir: Path) -> tuple[dict, dict]:
    """Metrics of the untrained and the trained model."""
    options = [f'randomness.seed={seed}']
    subprocess.run(
        [sys.executable, str(ROOT / 'tools/train.py'), config, '--work-dir', str(work_dir),
         '--resume', '--no-validate', '--cfg-options', *options],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    cfg = load_config(config, {'randomness.seed': seed, 'log_level': 'ERROR'}, str(work_dir))
    return evaluate(cfg), evaluate(cfg, find_resumable_checkpoint(work_dir))


def spread(values: list[float]) -> str:
    """Mean and standard deviation of several seeds' values; one seed has no deviation."""
    mean = f'{statistics.mean(values):.1f}'
    return mean if len(values) == 1 else f'{mean} ± {statistics.stdev(values):.1f}'


def print_table(header: list[str], rows: list[list[str]]) -> None:
    for row in (header, ['---'] * len(header), *rows):
        print('| ' + ' | '.join(row) + ' |')


def main() -> None:
    args = parse_args()
    rows = []
    for config in args.configs:
        work_dirs = [Path(args.work_dir) / f'{Path(config).stem}-seed{seed}' for seed in args.seeds]
        results = [run_seed(config, s, d) for s, d in zip(args.seeds, work_dirs)]
        for label, metrics in zip(('untrained', 'trained'), zip(*results)):
            cells = [spread([m[name] for m in metrics]) for name in args.metrics]
            rows.append([Path(config).stem, label, *cells])
    header = ['config', 'model', *(name.split('/')[-1] for name in args.metrics)]
    print_table(header, rows)


if __name__ == '__main__':
    run_tool(main)
