"""Helpers that read folders and list files of re-ID datasets."""

import glob
import os
import re

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.tif', '.tiff', '.webp')


def list_images(folder: str) -> list[str]:
    """Names of the image files directly in a folder, sorted."""
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES))


def find_packed_file(data_root: str, pattern: str, owner: str) -> str:
    """The file of a data set that comes in one file.

    Args:
        data_root: The file itself, or the folder that contains it.
        pattern: Its name, ``*`` standing for anything.
        owner: Name of the data set, for the message.

    Raises:
        FileNotFoundError: The folder has no such file.
    """
    if os.path.isfile(data_root):
        return data_root
    found = sorted(glob.glob(os.path.join(glob.escape(data_root), pattern)))
    if not found:
        raise FileNotFoundError(
            f'{owner}: no file {pattern!r} in {data_root!r}. Set data_root, in the config of the '
            'dataset, to the folder that contains it (the README next to the file describes it) or '
            'to the file itself; the shipped configs look in the folder that the environment '
            'variable VITDOWN_DATA names.'
        )
    return found[0]


def parse_name(name: str, pattern: str, path: str) -> tuple[int, ...]:
    """Integer groups of a pattern that a file's name must start with.

    Raises:
        ValueError: The name doesn't match; the message names the file and the pattern.
    """
    match = re.match(pattern, name)
    if match is None:
        raise ValueError(
            f"{path}: the file name does not match the pattern '{pattern}' of this dataset. "
            'Move the file out of the folder, or correct its name.'
        )
    return tuple(int(group) for group in match.groups())


def read_table(path: str, min_fields: int, separator: str | None = None) -> list[list[str]]:
    """Fields of each non-empty line of a text file.

    Raises:
        ValueError: A line has too few fields; the message names file and line.
    """
    rows = []
    with open(path, encoding='utf-8') as file:
        for number, line in enumerate(file, 1):
            fields = line.strip().split(separator)
            if not line.strip():
                continue
            if len(fields) < min_fields:
                raise ValueError(
                    f'{path}, line {number}: expected at least {min_fields} fields, '
                    f'got {line.strip()!r}.'
                )
            rows.append(fields)
    return rows


def to_int(text: str, what: str, path: str) -> int:
    """Integer value of a field.

    Raises:
        ValueError: It isn't one; the message names the file and the field.
    """
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'{path}: {what} must be an integer, got {text!r}.') from None


def zero_based_camera(camera: int, num_cameras: int, path: str) -> int:
    """0-based id of a camera counted from 1.

    Raises:
        ValueError: The dataset has no such camera; the message names the file.
    """
    if not 1 <= camera <= num_cameras:
        raise ValueError(
            f'{path}: camera {camera} is unknown, the dataset has cameras 1 to {num_cameras}.'
        )
    return camera - 1
