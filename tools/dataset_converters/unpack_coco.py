"""Unpack a detection set of one zip of images and COCO annotations, and check that they fit.

python tools/dataset_converters/unpack_coco.py PACK DESTINATION

PACK is a folder with images.zip and one JSON file a part (train.json, val.json); DESTINATION gets
the images and copies of the JSON files, the layout that configs/stvit reads.
"""

import argparse
import json
import zipfile
from pathlib import Path

from vitdown.engine.launch import ConfigError, run_tool
from vitdown.files import write_atomically


def check_part(annotations: dict, names: set[str], part: str) -> tuple[int, int]:
    """Number of images and annotations of a part.

    Raises:
        ConfigError: If images are missing in the archive, or annotations belong to no image or
            category.
    """
    images = {image['id']: image['file_name'] for image in annotations['images']}
    categories = {category['id'] for category in annotations['categories']}
    missing = sorted(set(images.values()) - names)
    if missing:
        raise ConfigError(f'{part}: {missing[0]} and {len(missing) - 1} more are not in images.zip')
    for annotation in annotations['annotations']:
        if annotation['image_id'] not in images or annotation['category_id'] not in categories:
            raise ConfigError(f'{part}: annotation {annotation["id"]} has no image or category')
    return len(images), len(annotations['annotations'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pack', type=Path, help='folder with images.zip and *.json')
    parser.add_argument('destination', type=Path, help='folder to write')
    args = parser.parse_args()
    parts = sorted(args.pack.glob('*.json'))
    if not parts or not (args.pack / 'images.zip').is_file():
        raise ConfigError(f'{args.pack} needs images.zip and at least one .json file')
    args.destination.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(args.pack / 'images.zip') as archive:
        names = set(archive.namelist())
        for part in parts:
            content = part.read_bytes()
            counts = check_part(json.loads(content), names, part.name)
            write_atomically(content, args.destination / part.name)
            print(f'{part.stem}: {counts[0]} images, {counts[1]} instances')
        archive.extractall(args.destination)


if __name__ == '__main__':
    run_tool(main)
