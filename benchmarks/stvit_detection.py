"""Train the small Mask R-CNNs on nuclei, STViT-R-Swin and its Swin twin, with several seeds.

Prints box and mask AP of both. Runs that have finished are read, interrupted ones go on, so the
command can be repeated until all are done.

    # VITDOWN_DATA: the folder with nuclei_dsb2018, from tools/dataset_converters/unpack_coco.py
    python benchmarks/stvit_detection.py --seeds 0 1 2 --minutes 5
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = 'configs/stvit/mask-rcnn_{}-mini_fpn_1xb4-4e_nuclei-256.py'
MODELS = {'Swin': 'swin', 'STViT-R-Swin': 'stvit-r-swin'}
METRICS = ('coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP', 'coco/segm_mAP_50')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--minutes', type=float, default=60, help='stop training after so long')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/stvit_detection'))
    parser.add_argument('--cfg-options', nargs='+', default=[], help='for all runs')
    return parser.parse_args()


def result(work_dir: Path) -> dict[str, float] | None:
    """Metrics of a finished run."""
    for path in sorted(work_dir.glob('*/vis_data/scalars.json'), reverse=True):
        for line in reversed(path.read_text().splitlines()):
            entry = json.loads(line)
            if METRICS[0] in entry:
                return {name: 100 * entry[name] for name in METRICS}
    return None


def train(config: str, work_dir: Path, options: list[str], seconds: float) -> None:
    """Train for a time at most; checkpoints are written every epoch."""
    command = [sys.executable, 'tools/train.py', config, '--work-dir', work_dir, '--resume',
               '--cfg-options', *options]  # fmt: skip
    try:
        subprocess.run(map(str, command), cwd=ROOT, timeout=seconds, check=True)
    except subprocess.TimeoutExpired:
        print(f'{work_dir}: out of time, to be continued')


def main() -> None:
    args = parse_args()
    end = time.monotonic() + 60 * args.minutes
    rows = {name: [] for name in MODELS}
    for seed in args.seeds:
        for name, kind in MODELS.items():
            work_dir = args.work_dir.resolve() / f'{kind}-{seed}'
            seconds = end - time.monotonic()
            if result(work_dir) is None and seconds > 1:
                options = [f'randomness.seed={seed}', *args.cfg_options]
                train(CONFIG.format(kind), work_dir, options, seconds)
            if metrics := result(work_dir):
                rows[name].append(metrics)
    print(f'\n| model | runs | {" | ".join(name.removeprefix("coco/") for name in METRICS)} |')
    print('| --- ' * (2 + len(METRICS)) + '|')
    for name, runs in rows.items():
        cells = []
        for metric in METRICS:
            values = [run[metric] for run in runs]
            spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
            cells.append(f'{statistics.mean(values):.1f}{spread}' if values else 'not run')
        print(f'| {name} | {len(runs)} | {" | ".join(cells)} |')


if __name__ == '__main__':
    main()
