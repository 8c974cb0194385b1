"""Draw features as points in a plane by t-SNE or UMAP: near points are alike.

python tools/visualization/vis_features.py features.npz --out identities.pdf
python tools/visualization/vis_features.py photos.npz --colour site --out sites.pdf

Takes files of tools/test.py --out (queries are drawn hollow) and of tools/embed.py --metadata.
"""

import argparse

import numpy as np

from vitdown.apis import load_embeddings
from vitdown.engine.launch import ConfigError, run_tool
from vitdown.evaluation.feature_set import load_feature_sets
from vitdown.visualization.feature_map import draw_feature_map, project_tsne, project_umap
from vitdown.visualization.style import save_plot


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('features', help='.npz file')
    parser.add_argument(
        '--colour', default='identity', help='what colours stand for: a column (default: identity)'
    )
    parser.add_argument(
        '--values', type=int, default=8,
        help='draw the images of so many values, those that most images have (default: 8)',
    )  # fmt: skip
    parser.add_argument('--max-points', type=int, default=2000, help='default: 2000')
    parser.add_argument('--method', choices=['tsne', 'umap'], default='tsne', help='default: tsne')
    parser.add_argument('--perplexity', type=float, default=30, help='of t-SNE (default: 30)')
    parser.add_argument('--neighbours', type=int, default=15, help='of UMAP (default: 15)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', required=True, help='.pdf, .png or .svg file')
    return parser.parse_args()


def read(path: str, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, their values in a column, and which are queries."""
    gallery = load_embeddings(path)
    if column not in gallery.metadata:
        raise ConfigError(f'{path} has no column {column!r}, only {sorted(gallery.metadata)}')
    features, values = [gallery.features], [gallery.metadata[column]]
    with np.load(path, allow_pickle=False) as arrays:
        has_queries = 'query_features' in arrays.files
    if has_queries:
        query = load_feature_sets(path)[0]
        features.append(query.features)
        values.append({'identity': query.ids, 'camera': query.cameras}[column])
    values = np.concatenate(values)
    return np.concatenate(features), values, np.arange(len(values)) >= len(gallery)


def choose(values: np.ndarray, count: int, max_points: int, seed: int) -> np.ndarray:
    """Rows of the ``count`` commonest values, at most ``max_points``."""
    names, counts = np.unique(values, return_counts=True)
    common = names[np.argsort(-counts, kind='stable')[:count]]
    rows = np.flatnonzero(np.isin(values, common))
    if len(rows) > max_points:
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_points, replace=False))
    return rows


def main() -> None:
    args = parse_args()
    features, values, hollow = read(args.features, args.colour)
    rows = choose(values, args.values, args.max_points, args.seed)
    if args.method == 'umap':
        points = project_umap(features[rows], args.neighbours, args.seed)
    else:
        points = project_tsne(features[rows], args.perplexity, args.seed)
    figure = draw_feature_map(points, values[rows], hollow[rows], args.colour)
    save_plot(figure, args.out)
    print(f'{args.out}: {len(rows)} images, {len(np.unique(values[rows]))} values of {args.colour}')


if __name__ == '__main__':
    run_tool(main)
