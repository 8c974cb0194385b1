"""Unpack CamVid from one .npz file to the folders that MMSegmentation reads.

python tools/dataset_converters/unpack_camvid.py camvid_240x180.npz DESTINATION

DESTINATION gets images/{train,val,test}/NAME.jpg and masks/{train,val,test}/NAME.png (class
indices; 255 for what is not labelled) and classes.txt.

The .npz file has class_names (the last is "unlabelled") and for PART in train, val, test:
PART_jpeg (uint8, all JPEG files one after another), PART_offsets (image i is bytes
offsets[i]:offsets[i+1]), PART_masks (N, H, W; indices of classes) and PART_names.
"""

import argparse
import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vitdown.engine.launch import ConfigError, run_tool
from vitdown.files import check_folder, write_atomically

PARTS = ('train', 'val', 'test')
# Dimensions and kinds (of NumPy's types) of a part's arrays
ARRAYS = dict(jpeg=(1, 'u'), offsets=(1, 'iu'), masks=(3, 'iu'), names=(1, 'U'))
IGNORED = 255


def encode_mask(mask: np.ndarray, num_classes: int) -> bytes:
    """PNG of a mask ``(H, W)``; classes from ``num_classes`` on become :data:`IGNORED`."""
    buffer = io.BytesIO()
    Image.fromarray(np.where(mask < num_classes, mask, IGNORED).astype(np.uint8)).save(
        buffer, 'png'
    )
    return buffer.getvalue()


def read_pack(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a pack.

    Raises:
        ConfigError: If one is missing, damaged or of another kind.
    """
    kinds = {f'{part}_{key}': kind for part in PARTS for key, kind in ARRAYS.items()}
    kinds['class_names'] = (1, 'U')
    arrays = {}
    with np.load(path) as pack:
        missing = [key for key in kinds if key not in pack]
        if missing:
            raise ConfigError(f'{path} has no {missing[0]}; is it the CamVid pack?')
        for key, (ndim, kind) in kinds.items():
            try:
                array = pack[key]
            except (ValueError, zipfile.BadZipFile, zlib.error, EOFError):
                raise ConfigError(f'{path}: {key} is damaged or no plain array') from None
            if array.ndim != ndim or array.dtype.kind not in kind:
                what = 'names' if kind == 'U' else 'whole numbers'
                raise ConfigError(
                    f'{key} must have {ndim} dimension(s) of {what}, got {array.ndim} of '
                    f'{array.dtype}'
                )
            arrays[key] = array
    if arrays['class_names'].tolist()[-1:] != ['unlabelled']:
        raise ConfigError(f'The last of class_names must be "unlabelled", in {path} it is not')
    return arrays


def check_part(pack: Mapping[str, np.ndarray], part: str) -> None:
    """Check that a part's arrays fit each other.

    Raises:
        ConfigError: If one has another length than the names say, images have no bytes or the
            same name, or masks have labels of no class.
    """
    jpeg, offsets, masks, names = (pack[f'{part}_{key}'] for key in ARRAYS)
    for key, array, length in (('offsets', offsets, len(names) + 1), ('masks', masks, len(names))):
        if len(array) != length:
            raise ConfigError(
                f'{part}_{key} has {len(array)} entries; {len(names)} images need {length}'
            )
    if offsets[-1] != len(jpeg):
        raise ConfigError(f'{part}_jpeg has {len(jpeg)} bytes, not {offsets[-1]}')
    if offsets[0] != 0 or (offsets[1:] <= offsets[:-1]).any():
        raise ConfigError(f'{part}_offsets must begin at 0 and grow with every image')
    stems = [Path(name).stem for name in names]
    if repeated := [name for name, stem in zip(names, stems) if stems.count(stem) > 1]:
        raise ConfigError(f'{part}_names has two images for one file: {", ".join(repeated[:2])}')
    num_classes = len(pack['class_names'])
    if masks.size and not 0 <= masks.min() <= masks.max() < num_classes:
        raise ConfigError(
            f'{part}_masks has labels from {masks.min()} to {masks.max()}, class_names has '
            f'{num_classes}'
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pack', type=Path, help='the .npz file')
    parser.add_argument('destination', type=Path, help='folder to write')
    args = parser.parse_args()
    if not args.pack.is_file():
        raise FileNotFoundError(f'{args.pack} does not exist')
    check_folder(args.destination)
    if not zipfile.is_zipfile(args.pack):
        raise ConfigError(f'{args.pack} is no .npz file')
    pack = read_pack(args.pack)
    # Nothing is written unless all parts are right.
    for part in PARTS:
        check_part(pack, part)
    classes = pack['class_names'].tolist()[:-1]
    for part in PARTS:
        images, offsets, masks, names = (pack[f'{part}_{key}'] for key in ARRAYS)
        folders = [args.destination / kind / part for kind in ('images', 'masks')]
        for i, name in enumerate(names):
            stem = Path(name).stem
            image = images[offsets[i] : offsets[i + 1]].tobytes()
            write_atomically(image, folders[0] / f'{stem}.jpg')
            write_atomically(encode_mask(masks[i], len(classes)), folders[1] / f'{stem}.png')
        print(f'{part}: {len(masks)} images')
    write_atomically('\n'.join(classes).encode(), args.destination / 'classes.txt')


if __name__ == '__main__':
    run_tool(main)
