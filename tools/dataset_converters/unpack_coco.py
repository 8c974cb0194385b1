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


def read_part(path: Path) -> dict:
    """A part's annotations.

    Raises:
        ConfigError: If the file is none of COCO's.
    """
    try:
        annotations = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f'{path} is no JSON file: {error}') from None
    for key in ('images', 'categories', 'annotations'):
        if not isinstance(annotations, dict) or not isinstance(annotations.get(key), list):
            raise ConfigError(f'{path} has no list of {key}, which COCO annotations have')
    return annotations


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
    images, parts = args.pack / 'images.zip', sorted(args.pack.glob('*.json'))
    if not parts or not images.is_file():
        raise ConfigError(f'{args.pack} needs images.zip and at least one .json file')
    if not zipfile.is_zipfile(images):
        raise ConfigError(f'{images} is no zip file')
    with zipfile.ZipFile(images) as archive:
        names = set(archive.namelist())
        # Nothing is written unless all parts are right.
        counts = [check_part(read_part(part), names, part.name) for part in parts]
        args.destination.mkdir(parents=True, exist_ok=True)
        archive.extractall(args.destination)
    for part, (num_images, num_instances) in zip(parts, counts):
        write_atomically(part.read_bytes(), args.destination / part.name)
        print(f'{part.stem}: {num_images} images, {num_instances} instances')


if __name__ == '__main__':
    run_tool(main)
