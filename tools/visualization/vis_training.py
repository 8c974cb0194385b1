"""Draw what trainings logged: losses, learning rates, metrics.

python tools/visualization/vis_training.py work_dirs/a work_dirs/b --values loss reid/mAP \\
    --out training.pdf
"""

import argparse
from pathlib import Path

from vitdown.engine.launch import ConfigError, run_tool
from vitdown.visualization.curves import draw_training
from vitdown.visualization.style import save_plot
from vitdown.visualization.training_log import read_scalars, series_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('runs', nargs='+', help='work dirs or scalars.json files')
    parser.add_argument(
        '--values', nargs='+', default=['loss', 'reid/mAP'], help='default: loss reid/mAP'
    )
    parser.add_argument('--names', nargs='+', help='names of the runs (default: their folders)')
    parser.add_argument('--out', required=True, help='.pdf, .png or .svg file')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    names = args.names or [Path(run).name for run in args.runs]
    if len(set(names)) != len(args.runs):
        raise ConfigError(f'{len(args.runs)} runs need as many different --names, got {names}')
    logs = {name: read_scalars(run) for name, run in zip(names, args.runs)}
    runs = {name: series_of(entries, args.values) for name, entries in logs.items()}
    drawn = {value for series in runs.values() for value in series}
    if missing := [value for value in args.values if value not in drawn]:
        logged = sorted({key for entries in logs.values() for entry in entries for key in entry})
        raise ConfigError(f'no run logged {missing[0]!r}; they logged {", ".join(logged)}')
    save_plot(draw_training(runs), args.out)
    print(f'{args.out}: {", ".join(args.values)} of {len(runs)} runs')


if __name__ == '__main__':
    run_tool(main)
