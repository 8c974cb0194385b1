"""Make a searchable gallery of feature files, add to it, or say what it holds.

python tools/index.py gallery photos.npz              # a folder; a kill leaves the old or the new
python tools/index.py gallery more.npz --append
python tools/index.py gallery                         # what it holds
python tools/index.py http://localhost:6333/people photos.npz     # a Qdrant collection

Feature files are those of tools/embed.py; of those of tools/test.py --out, the gallery is taken.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitdown.apis import Embeddings, create_gallery, load_embeddings, open_gallery
from vitdown.apis.galleries import is_collection
from vitdown.engine.launch import ConfigError, run_tool
from vitdown.evaluation.index import recommend

if TYPE_CHECKING:
    from vitdown.apis.galleries import Gallery


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'gallery', help='folder, http://host:6333/collection, or qdrant:folder/collection'
    )
    parser.add_argument('features', nargs='*', help='.npz files; none to look at the gallery')
    parser.add_argument('--append', action='store_true', help='add to a gallery that is there')
    parser.add_argument(
        '--factory',
        help='FAISS index of a new folder, e.g. Flat, HNSW32, IVF1024,PQ48 (default: chosen by '
        'the number of images)',
    )
    parser.add_argument(
        '--metric', choices=['cosine', 'euclidean'], help='of a new gallery (default: cosine)'
    )
    parser.add_argument(
        '--on-duplicate',
        choices=['stop', 'skip'],
        default='stop',
        help='what to do about images whose path is in the gallery, or was given before '
        '(default: stop)',
    )
    args = parser.parse_args()
    if args.factory and is_collection(args.gallery):
        parser.error('--factory is for folders: Qdrant has an index of its own')
    if not args.features and (args.append or args.factory or args.metric):
        parser.error('name the feature files, too')
    return args


def check_models(models: dict[str, str]) -> str:
    """The one model whose features are to be in a gallery, '' if unknown.

    Args:
        models: Fingerprint of each file or gallery.
    """
    known = {source: model for source, model in models.items() if model}
    if len(set(known.values())) > 1:
        listing = ', '.join(f'{source}: {model}' for source, model in known.items())
        raise ConfigError(
            f'these hold features of different models, which can not be compared ({listing}); '
            'embed the images again with one model'
        )
    return next(iter(known.values()), '')


def check_settings(args: argparse.Namespace, gallery: Gallery) -> None:
    """A gallery that is there keeps its metric and its index."""
    for name in ('metric', 'factory'):
        given, has = getattr(args, name), getattr(gallery, name, None)
        if given and given != has:
            raise ConfigError(
                f'{args.gallery} has the {name} {has}, which --append keeps: leave out --{name} '
                f'{given}, or make a new gallery'
            )


def new_rows(parts: Sequence[Embeddings], known: np.ndarray, on_duplicate: str) -> list[np.ndarray]:
    """Which rows of each part have paths that are neither known nor given before: booleans.

    Args:
        parts: What is to be added.
        known: Paths in the gallery.
        on_duplicate: ``'stop'`` or ``'skip'`` where there are others.
    """
    paths = np.concatenate([known, *(part.paths for part in parts)])
    new = np.zeros(len(paths), dtype=bool)
    new[np.unique(paths, return_index=True)[1]] = True
    double = paths[len(known) :][~new[len(known) :]]
    if len(double):
        message = (
            f'{len(double)} of {len(paths) - len(known)} images are in the gallery already or '
            f'given twice, the first is {double[0]}'
        )
        if on_duplicate == 'stop':
            raise ConfigError(f'{message}: --on-duplicate skip leaves them out')
        print(f'skipped: {message}', file=sys.stderr)
    return np.split(new[len(known) :], np.cumsum([len(part) for part in parts])[:-1])


def main() -> None:
    args = parse_args()
    parts = [load_embeddings(path) for path in args.features]
    models = {path: part.model for path, part in zip(args.features, parts)}
    gallery, known = None, np.empty(0, str)
    if args.append or not parts:
        gallery = open_gallery(args.gallery)
        check_models({args.gallery: gallery.model, **models})
        check_settings(args, gallery)
        if 'path' in gallery.column_types and parts:
            known = gallery.metadata['path']
    model = check_models(models)
    rows = new_rows(parts, known, args.on_duplicate)
    if gallery is None:
        count, dim = sum(map(len, parts)), parts[0].features.shape[1]
        factory = args.factory or recommend(count, dim).factory
        gallery = create_gallery(args.gallery, dim, factory, args.metric or 'cosine', model)
    for part, new in zip(parts, rows):
        if new.any():
            columns = {name: column[new] for name, column in part.columns().items()}
            gallery.add(part.features[new], metadata=columns)
    if parts and not is_collection(args.gallery):
        gallery.save(args.gallery)
    columns = ', '.join(f'{name} ({dtype})' for name, dtype in gallery.column_types.items())
    print(f'{args.gallery}: {len(gallery)} images, {gallery.dim} dimensions, {gallery.metric}')
    print(f'Model:   {gallery.model or "unknown"}')
    print(f'Columns: {columns or "none"}')


if __name__ == '__main__':
    run_tool(main)
