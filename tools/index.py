"""Make a searchable gallery of feature files, add to it, or say what it holds.

python tools/index.py gallery photos.npz              # a folder; a kill leaves the old or the new
python tools/index.py gallery more.npz --append
python tools/index.py gallery                         # what it holds
python tools/index.py http://localhost:6333/people photos.npz     # a Qdrant collection

Feature files are those of tools/embed.py; of those of tools/test.py --out, the gallery is taken.
"""

import argparse

from vitdown.apis import create_gallery, load_embeddings, open_gallery
from vitdown.apis.galleries import is_collection
from vitdown.engine.launch import ConfigError, run_tool
from vitdown.evaluation.index import recommend


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
        help='FAISS index of a folder, e.g. Flat, HNSW32, IVF1024,PQ48 (default: chosen by the '
        'number of images)',
    )
    parser.add_argument('--metric', choices=['cosine', 'euclidean'], default='cosine')
    return parser.parse_args()


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


def main() -> None:
    args = parse_args()
    parts = {path: load_embeddings(path) for path in args.features}
    models = {path: part.model for path, part in parts.items()}
    if args.append or not parts:
        gallery = open_gallery(args.gallery)
        check_models({args.gallery: gallery.model, **models})
    else:
        count, dim = sum(map(len, parts.values())), next(iter(parts.values())).features.shape[1]
        factory = args.factory or recommend(count, dim).factory
        gallery = create_gallery(args.gallery, dim, factory, args.metric, check_models(models))
    for part in parts.values():
        gallery.add(part.features, metadata=part.columns())
    if parts and not is_collection(args.gallery):
        gallery.save(args.gallery)
    columns = ', '.join(f'{name} ({dtype})' for name, dtype in gallery.column_types.items())
    print(f'{args.gallery}: {len(gallery)} images, {gallery.dim} dimensions, {gallery.metric}')
    print(f'Model:   {gallery.model or "unknown"}')
    print(f'Columns: {columns or "none"}')


if __name__ == '__main__':
    run_tool(main)
