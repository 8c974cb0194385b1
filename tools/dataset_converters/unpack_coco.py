"""Unpack a detection set of one zip of images and COCO annotations, and check that they fit.

python tools/dataset_converters/unpack_coco.py PACK DESTINATION

PACK is a folder with images.zip and one JSON file a part (train.json, val.json); DESTINATION gets
the images and copies of the JSON files, the layout that configs/stvit reads.
"""

import argparse
import json
import zipfile
import zlib
from collections.abc import Sequence
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


def check_fields(record: object, fields: Sequence[str], where: str) -> None:
    """Check that a record is an object with these fields.

    Raises:
        ConfigError: If it is none, or lacks one.
    """
    if not isinstance(record, dict):
        raise ConfigError(f'{where} is {record!r}, not an object')
    for field in fields:
        if field not in record:
            raise ConfigError(f'{where} has no {field}')


def check_part(annotations: dict, names: set[str], part: str) -> tuple[int, int]:
    """Number of images and annotations of a part.

    Raises:
        ConfigError: If fields are missing, ids occur twice, images are missing in the archive, or
            annotations belong to no image or category.
    """
    fields = dict(
        images=('id', 'file_name'),
        categories=('id',),
        annotations=('id', 'image_id', 'category_id', 'bbox'),
    )
    ids: dict[str, set] = {}
    for kind, required in fields.items():
        ids[kind] = set()
        for i, record in enumerate(annotations[kind]):
            check_fields(record, required, f'{part}: {kind}[{i}]')
            if record['id'] in ids[kind]:
                raise ConfigError(f'{part}: {kind} has the id {record["id"]} twice')
            ids[kind].add(record['id'])
    missing = sorted({image['file_name'] for image in annotations['images']} - names)
    if missing:
        raise ConfigError(f'{part}: {missing[0]} and {len(missing) - 1} more are not in images.zip')
    for annotation in annotations['annotations']:
        owners = annotation['image_id'], annotation['category_id']
        if owners[0] not in ids['images'] or owners[1] not in ids['categories']:
            raise ConfigError(f'{part}: annotation {annotation["id"]} has no image or category')
    return len(ids['images']), len(ids['annotations'])


def check_archive(archive: zipfile.ZipFile) -> None:
    """Read all of an archive's members.

    Raises:
        ConfigError: If one is damaged.
    """
    for name in archive.namelist():
        try:
            archive.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError):
            raise ConfigError(f'{archive.filename}: {name} is damaged') from None


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
    if args.destination.is_file():
        raise ConfigError(f'{args.destination} is a file; name a folder')
    with zipfile.ZipFile(images) as archive:
        names = set(archive.namelist())
        # Nothing is written unless all parts are right.
        counts = [check_part(read_part(part), names, part.name) for part in parts]
        check_archive(archive)
        args.destination.mkdir(parents=True, exist_ok=True)
        archive.extractall(args.destination)
    for part, (num_images, num_instances) in zip(parts, counts):
        write_atomically(part.read_bytes(), args.destination / part.name)
        print(f'{part.stem}: {num_images} images, {num_instances} instances')


if __name__ == '__main__':
    run_tool(main)
