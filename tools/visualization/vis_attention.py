"""Show where a ViT looks: attention rollout and the local queries that it selects, over images.

python tools/visualization/vis_attention.py CONFIG CHECKPOINT photos/ --out-dir attention
python tools/visualization/vis_attention.py CONFIG CHECKPOINT matches.jsonl --out-dir attention

For a file of ranking lists (tools/search.py --out matches.jsonl) one picture a query shows the
query and its matches. Rollout runs from blue, the least of the image, to red.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

from vitdown.apis import list_images
from vitdown.apis.command_line import (
    add_metadata_arguments,
    add_model_arguments,
    build_inferencer,
    image_metadata,
)
from vitdown.engine.launch import ConfigError, run_tool
from vitdown.visualization import draw_ranking_list, save_picture
from vitdown.visualization.attention_map import (
    draw_attention,
    draw_patches,
    draw_rollout,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument(
        'images', nargs='+', help='files, folders, quoted patterns; or one .jsonl of ranking lists'
    )
    add_metadata_arguments(parser)
    parser.add_argument('--out-dir', required=True, help='folder for the pictures')
    parser.add_argument(
        '--ratio', type=float, help="share of the patches selected (default: the model's, or 0.3)"
    )
    parser.add_argument('--max-images', type=int, default=100, help='pictures (default: 100)')
    parser.add_argument('-k', type=int, help='matches a ranking list (default: 10)')
    parser.add_argument(
        '--patches', action='store_true', help='in ranking lists, local queries, not rollout'
    )
    parser.add_argument('--scale', type=int, default=2, help='enlarge images (default: 2)')
    return parser.parse_args()


def read_ranking_lists(path: str, k: int, limit: int) -> list[dict]:
    """Records of a file that tools/search.py wrote."""
    lists = []
    with open(path, encoding='utf-8') as file:
        lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        for number, line in islice(lines, limit):
            try:
                record = json.loads(line)
                matches = [
                    (match['path'], match['rank'], match['score']) for match in record['matches']
                ]
                lists.append(dict(query=record['query'], matches=matches[:k]))
            except (ValueError, KeyError, TypeError):
                raise ConfigError(
                    f'{path}, line {number}: expected a record of tools/search.py --out FILE.jsonl '
                    'with query and matches, each with path, rank and score'
                ) from None
    return lists


def check_arguments(args: argparse.Namespace) -> None:
    for name, option in (('max_images', '--max-images'), ('k', '-k'), ('scale', '--scale')):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f'{option} must be at least 1, got {value}')
    if args.ratio is not None and not 0 < args.ratio <= 1:
        raise ConfigError(f'--ratio must be in (0, 1], got {args.ratio}')
    lists = [name for name in args.images if name.endswith('.jsonl')]
    if lists and len(args.images) > 1:
        raise ConfigError(f'{lists[0]} holds ranking lists and goes alone, without other images')
    for option, given in (('-k', args.k is not None), ('--patches', args.patches)):
        if given and not lists:
            raise ConfigError(
                f'{option} is for ranking lists, a .jsonl of tools/search.py; leave it out'
            )


def main() -> None:
    args = parse_args()
    check_arguments(args)
    inferencer = build_inferencer(args)
    if args.images[0].endswith('.jsonl'):
        lists = read_ranking_lists(args.images[0], args.k or 10, args.max_images)
        draw = draw_patches if args.patches else draw_rollout
        for number, record in enumerate(lists):
            paths = [record['query'], *(path for path, *_ in record['matches'])]
            seen = inferencer.attend(paths, args.ratio, image_metadata(args, paths))
            pictures = [draw(*pair) for pair in seen]
            height, width = pictures[0].shape[:2]
            picture = draw_ranking_list(
                pictures[0],
                pictures[1:],
                [None] * len(record['matches']),
                ['query'],
                [[f'{rank}: {score:.3f}'] for _, rank, score in record['matches']],
                (args.scale * height, args.scale * width),
            )
            save_picture(picture, args.out_dir, f'{number:05d}_{Path(record["query"]).name}')
        count = len(lists)
    else:
        paths = [sample['img_path'] for sample in list_images(args.images)][: args.max_images]
        seen = inferencer.attend(paths, args.ratio, image_metadata(args, paths))
        for number, pair in enumerate(seen):
            picture = draw_attention(*pair, args.scale)
            save_picture(picture, args.out_dir, f'{number:05d}_{Path(paths[number]).name}')
        count = len(paths)
    print(f'{count} pictures written to {args.out_dir}')


if __name__ == '__main__':
    run_tool(main)
