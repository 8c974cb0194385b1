"""Search a gallery for what looks most like each query.

python tools/search.py CONFIG CHECKPOINT gallery query.jpg --where camera=1,2
python tools/search.py CONFIG CHECKPOINT gallery queries/ --out matches.jsonl --show-dir lists
"""

import argparse

from vitdown.apis import Rankings, list_images, open_gallery
from vitdown.apis.command_line import (
    add_image_arguments,
    add_model_arguments,
    build_inferencer,
    image_metadata,
    report_skipped,
)
from vitdown.apis.conditions import parse_conditions, split_conditions
from vitdown.engine.launch import ConfigError, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument(
        'gallery', help='folder, http://host:6333/collection, or qdrant:folder/collection'
    )
    add_image_arguments(parser, 'the queries')
    parser.add_argument('-k', type=int, default=10, help='matches a query (default: 10)')
    parser.add_argument(
        '--where',
        nargs='+',
        default=[],
        metavar='COLUMN=VALUES',
        help='which images may be found: camera=1,2 or time=2024-05-01..2024-05-03',
    )
    parser.add_argument('--out', help='.jsonl, .csv or .npz file (default: a table on the screen)')
    parser.add_argument('--show-dir', help='write a picture of each ranking list here')
    parser.add_argument('--show', action='store_true', help="open the first query's picture")
    return parser.parse_args()


def print_table(rankings: Rankings) -> None:
    for record in rankings.records():
        print(record['query'])
        for match in record['matches']:
            rank, score, number = match.pop('rank'), match.pop('score'), match.pop('id')
            path = match.pop('path', f'id {number}')
            rest = '  '.join(f'{name}={value}' for name, value in match.items())
            print(f'{rank:5d}  {score:7.4f}  {path}  {rest}'.rstrip())


def main() -> None:
    args = parse_args()
    if args.out and not args.out.endswith(('.npz', '.jsonl', '.csv')):
        raise ConfigError(f'--out {args.out}: use a name that ends in .jsonl, .csv or .npz')
    if args.k < 1:
        raise ConfigError(f'-k must be at least 1, got {args.k}')
    conditions = split_conditions(args.where)
    gallery = open_gallery(args.gallery, mmap=True)
    where = parse_conditions(conditions, gallery.column_types) or None
    paths = [sample['img_path'] for sample in list_images(args.images)]
    metadata = image_metadata(args, paths)
    inferencer = build_inferencer(args)
    rankings = inferencer.search(paths, gallery, args.k, where, metadata, args.on_error)
    report_skipped(rankings.skipped)
    if args.out:
        rankings.save(args.out)
        print(f'{args.out}: matches of {len(rankings)} queries')
    else:
        print_table(rankings)
    if args.show_dir:
        rankings.save_pictures(args.show_dir)
    if args.show:
        rankings.show()


if __name__ == '__main__':
    run_tool(main)
