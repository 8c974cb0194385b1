"""Draw CMC or ROC curves of feature files (tools/test.py --out).

python tools/visualization/vis_curves.py cmc ours.npz baseline.npz --out cmc.pdf
python tools/visualization/vis_curves.py roc a.npz b.npz --names ours baseline --out roc.pdf
"""

import argparse
from pathlib import Path

from vitdown.engine.launch import ConfigError, run_tool
from vitdown.evaluation.evaluate import EvaluationOptions, evaluate_feature_sets
from vitdown.evaluation.feature_set import (
    FeatureSet,
    cameras_known,
    find_same_images,
    load_feature_sets,
)
from vitdown.evaluation.functional import RocCurve, roc_curve
from vitdown.visualization.curves import draw_cmc, draw_roc
from vitdown.visualization.style import save_plot


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('kind', choices=['cmc', 'roc'])
    parser.add_argument('features', nargs='+', help='.npz files')
    parser.add_argument('--names', nargs='+', help='names of the curves (default: the files)')
    parser.add_argument('--metric', choices=['cosine', 'euclidean'], default='cosine')
    parser.add_argument('--ranks', type=int, default=20, help='length of CMC curves (default: 20)')
    parser.add_argument('--out', required=True, help='.pdf, .png or .svg file')
    return parser.parse_args()


def cmc(query: FeatureSet, gallery: FeatureSet, args: argparse.Namespace) -> list[float]:
    ranks = list(range(1, args.ranks + 1))
    options = EvaluationOptions(metric=args.metric, topk=ranks)
    metrics = evaluate_feature_sets(query, gallery, options).metrics
    return [metrics[f'CMC@{k}'] for k in ranks]


def roc(query: FeatureSet, gallery: FeatureSet, args: argparse.Namespace) -> RocCurve:
    cameras = {}
    if cameras_known(query, gallery):
        cameras = dict(query_cameras=query.cameras, gallery_cameras=gallery.cameras)
    return roc_curve(
        query.features, gallery.features, query.ids, gallery.ids, metric=args.metric,
        self_index=find_same_images(query, gallery), **cameras,
    )  # fmt: skip


def main() -> None:
    args = parse_args()
    names = args.names or [Path(path).stem for path in args.features]
    if len(set(names)) != len(args.features):
        raise ConfigError(f'{len(args.features)} files need as many different --names, got {names}')
    if args.ranks < 1:
        raise ConfigError(f'--ranks must be at least 1, got {args.ranks}')
    compute, draw = {'cmc': (cmc, draw_cmc), 'roc': (roc, draw_roc)}[args.kind]
    sets = {name: load_feature_sets(path) for name, path in zip(names, args.features)}
    save_plot(draw({name: compute(*pair, args) for name, pair in sets.items()}), args.out)
    print(f'{args.out}: {args.kind} curves of {", ".join(names)}')


if __name__ == '__main__':
    run_tool(main)
