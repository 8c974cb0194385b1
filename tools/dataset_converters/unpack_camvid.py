"""Unpack CamVid from one .npz file to the folders that MMSegmentation reads.

python tools/dataset_converters/unpack_camvid.py camvid_240x180.npz DESTINATION

DESTINATION gets images/{train,val,test}/NAME.jpg and masks/{train,val,test}/NAME.png (class
indices; 255 for what is not labelled) and classes.txt.

The .npz file has class_names (its "unlabelled" is the last) and for PART in train, val, test:
PART_jpeg (uint8, all JPEG files one after another), PART_offsets (image i is bytes
offsets[i]:offsets[i+1]), PART_masks (N, H, W) and PART_names.
"""

import argparse
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vitdown.engine.launch import ConfigError, run_tool
from vitdown.files import write_atomically

PARTS = ('train', 'val', 'test')
KEYS = ('jpeg', 'offsets', 'masks', 'names')
IGNORED = 255


def encode_mask(mask: np.ndarray, num_classes: int) -> bytes:
    """PNG of a mask ``(H, W)``; classes from ``num_classes`` on become :data:`IGNORED`."""
    buffer = io.BytesIO()
    Image.fromarray(np.where(mask < num_classes, mask, IGNORED).astype(np.uint8)).save(
        buffer, 'png'
    )
    return buffer.getvalue()


def check_part(pack: Mapping[str, np.ndarray], part: str) -> None:
    """Check that a part's arrays fit each other.

    Raises:
        ConfigError: If one has another length than the names say.
    """
    count = len(pack[f'{part}_names'])
    for key, length in (('offsets', count + 1), ('masks', count)):
        if len(pack[f'{part}_{key}']) != length:
            raise ConfigError(
                f'{part}_{key} has {len(pack[f"{part}_{key}"])} entries; {count} images need '
                f'{length}'
            )
    end = int(pack[f'{part}_offsets'][-1])
    if end != len(pack[f'{part}_jpeg']):
        raise ConfigError(f'{part}_jpeg has {len(pack[f"{part}_jpeg"])} bytes, not {end}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pack', type=Path, help='the .npz file')
    parser.add_argument('destination', type=Path, help='folder to write')
    args = parser.parse_args()
    if not args.pack.is_file():
        raise FileNotFoundError(f'{args.pack} does not exist')
    if args.destination.is_file():
        raise ConfigError(f'{args.destination} is a file; name a folder')
    if not zipfile.is_zipfile(args.pack):
        raise ConfigError(f'{args.pack} is no .npz file')
    with np.load(args.pack) as pack:
        keys = ['class_names', *(f'{part}_{key}' for part in PARTS for key in KEYS)]
        missing = [key for key in keys if key not in pack]
        if missing:
            raise ConfigError(f'{args.pack} has no {missing[0]}; is it the CamVid pack?')
        for part in PARTS:
            check_part(pack, part)
        names = [str(name) for name in pack['class_names'] if str(name) != 'unlabelled']
        for part in PARTS:
            images, offsets, masks = (pack[f'{part}_{key}'] for key in ('jpeg', 'offsets', 'masks'))
            folders = [args.destination / kind / part for kind in ('images', 'masks')]
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            for i, name in enumerate(pack[f'{part}_names']):
                stem = Path(str(name)).stem
                image = images[offsets[i] : offsets[i + 1]].tobytes()
                write_atomically(image, folders[0] / f'{stem}.jpg')
                write_atomically(encode_mask(masks[i], len(names)), folders[1] / f'{stem}.png')
            print(f'{part}: {len(masks)} images')
    write_atomically('\n'.join(names).encode(), args.destination / 'classes.txt')


if __name__ == '__main__':
    run_tool(main)
