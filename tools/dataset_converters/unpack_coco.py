"""Unpack a detection set of one zip of images and COCO annotations, and check that they fit.

python tools/dataset_converters/unpack_coco.py PACK DESTINATION

PACK is a folder with images.zip and one JSON file a part (train.json, val.json); DESTINATION gets
the images and copies of the JSON files, the layout that configs/stvit reads.
"""

import argparse
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from vitdown.engine.launch import ConfigError, run_tool
from vitdown.files import check_folder, write_atomically


def is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


# What a value must be, and whether it is
Kind = tuple[str, Callable[[object], bool]]
ID: Kind = 'a number or a text', lambda value: type(value) in (int, str)
TEXT: Kind = 'a text', lambda value: isinstance(value, str)
LENGTH: Kind = 'a number of pixels', lambda value: type(value) is int and value > 0
NUMBER: Kind = 'a number', is_number
BOX: Kind = (
    'four numbers',
    lambda value: isinstance(value, list) and len(value) == 4 and all(map(is_number, value)),
)
# What MMDetection reads of each record
FIELDS: dict[str, dict[str, Kind]] = dict(
    images=dict(id=ID, file_name=TEXT, height=LENGTH, width=LENGTH),
    categories=dict(id=ID, name=TEXT),
    annotations=dict(id=ID, image_id=ID, category_id=ID, area=NUMBER, bbox=BOX),
)


def read_part(path: Path) -> dict:
    """A part's annotations.

    Raises:
        ConfigError: If the file is none of COCO's.
    """
    try:
        annotations = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f'{path} is no JSON file: {error}') from None
    for key in FIELDS:
        if not isinstance(annotations, dict) or not isinstance(annotations.get(key), list):
            raise ConfigError(f'{path} has no list of {key}, which COCO annotations have')
    return annotations


def check_fields(record: object, fields: Mapping[str, Kind], where: str) -> None:
    """Check that a record is an object with these fields.

    Raises:
        ConfigError: If it is none, lacks one or has one of another kind.
    """
    if not isinstance(record, dict):
        raise ConfigError(f'{where} is {record!r}, not an object')
    for field, (kind, fits) in fields.items():
        if field not in record:
            raise ConfigError(f'{where} has no {field}')
        if not fits(record[field]):
            raise ConfigError(f'{where}: {field} must be {kind}, got {record[field]!r}')


def check_part(annotations: dict, names: set[str], part: str) -> tuple[int, int]:
    """Number of images and annotations of a part.

    Raises:
        ConfigError: If fields are missing or of another kind, ids occur twice, images are missing
            in the archive, or annotations belong to no image or category.
    """
    ids: dict[str, set] = {}
    for kind, required in FIELDS.items():
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
    check_folder(args.destination)
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
