"""Draw a synthetic re-ID set in the Market-1501 convention."""

import argparse
from pathlib import Path

from vitdown.datasets.synthetic import KINDS, SyntheticSettings, generate_synthetic_reid
from vitdown.engine.launch import run_tool


def main() -> None:
    defaults = SyntheticSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('root', help='folder of the set')
    parser.add_argument('--kind', choices=sorted(KINDS), default=defaults.kind)
    for name in ('num_train_ids', 'num_test_ids', 'num_cameras', 'images_per_camera', 'seed'):
        option = '--' + name.replace('_', '-')
        parser.add_argument(option, type=int, default=getattr(defaults, name))
    parser.add_argument('--image-size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'))
    args = vars(parser.parse_args())
    root = generate_synthetic_reid(args.pop('root'), SyntheticSettings(**args))
    counts = {path.name: sum(1 for _ in path.iterdir()) for path in root.iterdir() if path.is_dir()}
    print(f'{Path(root)}: ' + ', '.join(f'{k} {v}' for k, v in sorted(counts.items())))


if __name__ == '__main__':
    run_tool(main)
