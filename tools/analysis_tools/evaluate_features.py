"""Evaluate features without a model: a .npz file of tools/test.py --out, or your own.

The file holds query_features (Q, D), query_ids (Q,), gallery_features (G, D) and gallery_ids (G,),
and may hold query_cameras, gallery_cameras (integers, -1: unknown), query_paths and gallery_paths.
"""

import argparse
import csv
from pathlib import Path

import mmengine
import numpy as np

from vitdown.engine.launch import ConfigError, run_tool
from vitdown.evaluation.evaluate import (
    PROTOCOLS,
    Evaluation,
    EvaluationOptions,
    evaluate_feature_sets,
)
from vitdown.evaluation.feature_set import load_feature_sets

_ROWS = {'': 'features as they are', 'qe_': 'query expansion', 'rerank_': 're-ranked'}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('features', help='.npz file')
    parser.add_argument('--metric', choices=['cosine', 'euclidean'], default='cosine')
    parser.add_argument('--topk', type=int, nargs='+', default=[1, 5, 10], metavar='K')
    parser.add_argument(
        '--protocol', choices=PROTOCOLS, default='auto',
        help='auto: cross-camera where cameras are known, else plain',
    )  # fmt: skip
    parser.add_argument(
        '--repeats', type=int,
        help='draws of the gallery (default: 100 for single-gallery-shot, 10 for vehicleid)',
    )  # fmt: skip
    parser.add_argument('--seed', type=int, default=0, help='seed of the draws')
    parser.add_argument('--rerank', action='store_true', help='k-reciprocal re-ranking, too')
    parser.add_argument('--k1', type=int, help='of re-ranking (default: 20)')
    parser.add_argument('--k2', type=int, help='of re-ranking (default: 6)')
    parser.add_argument('--lambda-value', type=float, help='of re-ranking (default: 0.3)')
    parser.add_argument(
        '--query-expansion', type=int, nargs='?', const=10, metavar='K',
        help='query expansion by the K nearest gallery images (default: 10), too',
    )  # fmt: skip
    parser.add_argument(
        '--alpha', type=float,
        help='exponent of the weights in query expansion, e.g. 3 (default: 0, the plain mean)',
    )  # fmt: skip
    parser.add_argument(
        '--tpr-at-fpr', type=float, nargs='+', default=[], metavar='FPR',
        help='true positive rate of all pairs at these false positive rates, too',
    )  # fmt: skip
    parser.add_argument('--max-memory-mb', type=float, default=512, help='bound for scores')
    parser.add_argument('--device', default='cpu', help='where scores are computed, e.g. cuda')
    parser.add_argument('--per-query', metavar='FILE.csv', help='write a row for each query')
    parser.add_argument('--out', metavar='FILE.json', help='write the metrics, in percent')
    args = parser.parse_args()
    for option, needed, chosen in (
        ('k1', '--rerank', args.rerank),
        ('k2', '--rerank', args.rerank),
        ('lambda_value', '--rerank', args.rerank),
        ('alpha', '--query-expansion', args.query_expansion is not None),
    ):
        if getattr(args, option) is not None and not chosen:
            parser.error(f'--{option.replace("_", "-")} does nothing without {needed}')
    return args


def options_of(args: argparse.Namespace) -> EvaluationOptions:
    def given(**options):
        return {name: value for name, value in options.items() if value is not None}

    return EvaluationOptions(
        metric=args.metric,
        topk=args.topk,
        protocol=args.protocol,
        rerank=args.rerank and given(k1=args.k1, k2=args.k2, lambda_value=args.lambda_value),
        query_expansion=(
            args.query_expansion is not None and given(k=args.query_expansion, alpha=args.alpha)
        ),
        tpr_at_fpr=args.tpr_at_fpr,
        repeats=args.repeats,
        seed=args.seed,
        max_memory_mb=args.max_memory_mb,
        device=args.device,
    )


def table(evaluation: Evaluation, topk: list[int]) -> str:
    """Metrics in percent: a row for each kind of ranking, then the other metrics."""
    metrics = {name: 100 * value for name, value in evaluation.metrics.items()}
    names = ['mAP', 'mINP', *(f'CMC@{k}' for k in topk)]
    spread = f'{names[0]}_std' in metrics
    width = 15 if spread else 8
    lines = [' ' * 22 + ''.join(f'{name:>{width}}' for name in names)]
    for prefix, title in _ROWS.items():
        if f'{prefix}mAP' not in metrics:
            continue
        cells = [
            f'{metrics[prefix + name]:.2f}'
            + (f' +- {metrics[f"{prefix}{name}_std"]:.2f}' if spread else '')
            for name in names
        ]
        lines.append(f'{title:<22}' + ''.join(f'{cell:>{width}}' for cell in cells))
    lines += [f'{name:<22}{value:>8.2f}' for name, value in metrics.items() if 'TPR@' in name]
    return '\n'.join(lines)


def write_per_query(evaluation: Evaluation, path: str) -> None:
    """Labels and scores of each query; empty where it has no positive."""
    query, columns = evaluation.query, evaluation.per_query
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['path', 'id', 'camera', *columns])
        for i in range(len(query)):
            missing = np.isnan(columns['AP'][i])
            scores = ['' if missing else values[i].item() for values in columns.values()]
            writer.writerow([query.paths[i], query.ids[i], query.cameras[i], *scores])


def main() -> None:
    args = parse_args()
    for value, option, suffix in (
        (args.per_query, '--per-query', '.csv'),
        (args.out, '--out', '.json'),
    ):
        if value and not value.endswith(suffix):
            raise ConfigError(f'{option} {value}: use a file name that ends in {suffix}')
    options = options_of(args)
    query, gallery = load_feature_sets(args.features)
    evaluation = evaluate_feature_sets(query, gallery, options)
    print(
        f'{args.features}: {len(query)} queries of {len(set(query.ids))} identities, '
        f'{len(gallery)} gallery images of {len(set(gallery.ids))} identities'
    )
    print(f'Protocol: {evaluation.protocol}')
    skipped = len(evaluation.query) - evaluation.num_valid_queries
    if skipped:
        print(f'{skipped} queries have no positive in the gallery and are left out')
    print(table(evaluation, args.topk))
    if args.per_query:
        write_per_query(evaluation, args.per_query)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        mmengine.dump({name: 100 * value for name, value in evaluation.metrics.items()}, args.out)


if __name__ == '__main__':
    run_tool(main)
