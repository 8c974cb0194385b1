"""Embed images: a feature for each, in a .npz, .jsonl or .csv file.

python tools/embed.py CONFIG CHECKPOINT photos/ --out photos.npz [--metadata photos.csv]
"""

import argparse

from vitdown.apis import list_images
from vitdown.apis.command_line import (
    add_image_arguments,
    add_model_arguments,
    build_inferencer,
    image_metadata,
    report_skipped,
)
from vitdown.engine.launch import ConfigError, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    add_image_arguments(parser, 'what to embed')
    parser.add_argument('--out', required=True, help='.npz, .jsonl or .csv file; see docs/apis.md')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if not args.out.endswith(('.npz', '.jsonl', '.csv')):
        raise ConfigError(f'--out {args.out}: use a name that ends in .npz, .jsonl or .csv')
    paths = [sample['img_path'] for sample in list_images(args.images)]
    metadata = image_metadata(args, paths)
    embeddings = build_inferencer(args)(paths, metadata, args.on_error)
    report_skipped(embeddings.skipped)
    embeddings.save(args.out)
    print(
        f'{args.out}: {len(embeddings)} features of {embeddings.features.shape[1]} dimensions, '
        f'model {embeddings.model}'
    )


if __name__ == '__main__':
    run_tool(main)
