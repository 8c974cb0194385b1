"""Train the small Mask R-CNNs on nuclei, STViT-R-Swin and its Swin twin, with several seeds.

Prints box and mask AP of both; a detector that finds nothing has an AP of 0. Runs that have
finished are read, interrupted ones go on, so the command can be repeated until all are done. Each
keeps its settings beside its results, and with other settings it is refused.

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

from vitdown.checkpoint import find_resumable_checkpoint
from vitdown.engine.launch import ConfigError, run_tool
from vitdown.files import write_atomically

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


def result(work_dir: Path, config: str, options: list[str], seconds: float) -> dict | None:
    """Metrics in percent of a run, which is trained and tested if need be.

    Returns:
        dict | None: None if the time does not suffice.

    Raises:
        ConfigError: If the folder holds a run with other settings, or one that names none.
    """
    record = work_dir / 'result.json'
    settings = {'config': config, 'options': options}
    if not record.is_file() and find_resumable_checkpoint(work_dir):
        raise ConfigError(
            f'{work_dir} holds checkpoints and no {record.name}, which says by which settings; '
            'name another --work-dir'
        )
    saved = json.loads(record.read_text()) if record.is_file() else {'settings': settings}
    if saved['settings'] != settings:
        raise ConfigError(
            f'{work_dir} holds a run with {saved["settings"]}, not {settings}; name another '
            '--work-dir'
        )
    if 'metrics' not in saved and seconds > 1:
        work_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(json.dumps(saved).encode(), record)
        if train(config, work_dir, options, seconds):
            saved['metrics'] = test(config, work_dir, options)
            write_atomically(json.dumps(saved, indent=2).encode(), record)
    return saved.get('metrics')


def train(config: str, work_dir: Path, options: list[str], seconds: float) -> bool:
    """Train for a time at most; checkpoints are written every epoch. Whether it is done."""
    try:
        run_in_root('tools/train.py', config, '--work-dir', work_dir, '--resume', '--no-validate',
                    '--cfg-options', *options, timeout=seconds)  # fmt: skip
    except subprocess.TimeoutExpired:
        print(f'{work_dir}: out of time, to be continued')
        return False
    return True


def test(config: str, work_dir: Path, options: list[str]) -> dict[str, float]:
    """Metrics of the last checkpoint; none is reported where nothing is detected."""
    path = work_dir / 'metrics.json'
    run_in_root('tools/test.py', config, find_resumable_checkpoint(work_dir), '--work-dir',
                work_dir, '--out', path, '--cfg-options', *options)  # fmt: skip
    found = json.loads(path.read_text())
    return {name: 100 * found.get(name, 0.0) for name in METRICS}


def run_in_root(*command: str | Path, timeout: float | None = None) -> None:
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, timeout=timeout, check=True)


def main() -> None:
    args = parse_args()
    end = time.monotonic() + 60 * args.minutes
    rows = {name: [] for name in MODELS}
    for seed in args.seeds:
        for name, kind in MODELS.items():
            work_dir = args.work_dir.resolve() / f'{kind}-{seed}'
            options = [f'randomness.seed={seed}', *args.cfg_options]
            metrics = result(work_dir, CONFIG.format(kind), options, end - time.monotonic())
            if metrics:
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
    run_tool(main)
