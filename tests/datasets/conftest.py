import gc
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdown.datasets import base


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (8, 16)) -> Path:
    """Write an image of one colour, size (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (value, 0, 255 - value)).save(path)
    return path


def write_images(root: Path, *names: str) -> None:
    for name in names:
        write_image(root / name)


@pytest.fixture(scope='session', autouse=True)
def quick_garbage_collection():
    """MMEngine collects garbage for each dataset that it serialises; spare it the libraries."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def logged(monkeypatch) -> list[tuple[int, str]]:
    """What datasets log, as (level, message)."""
    records = []

    def record(message, logger=None, level=logging.INFO):
        records.append((level, message))

    monkeypatch.setattr(base, 'print_log', record)
    return records


@pytest.fixture
def market(tmp_path) -> Path:
    """A tiny Market-1501: junk, distractors, and files that are not images."""
    write_images(
        tmp_path,
        'bounding_box_train/0007_c2s1_000001_01.jpg',
        'bounding_box_train/0007_c1s1_000002_01.jpg',
        'bounding_box_train/0002_c6s1_000003_01.jpg',
        'bounding_box_train/1500_c3s1_000004_01.jpg',
        'query/0001_c1s1_000001_00.jpg',
        'query/0003_c2s1_000001_00.jpg',
        'bounding_box_test/-1_c1s1_000001_01.jpg',
        'bounding_box_test/0000_c4s1_000002_01.jpg',
        'bounding_box_test/0001_c2s1_000003_01.jpg',
        'bounding_box_test/0003_c5s1_000004_01.jpg',
    )
    (tmp_path / 'bounding_box_test/Thumbs.db').write_bytes(b'x')
    return tmp_path


@pytest.fixture
def omniglot_file(tmp_path) -> Path:
    """A tiny pack with the keys of omniglot8.npz: 3 characters x 4 drawers, 2 for training."""
    identity, drawer = np.divmod(np.arange(12, dtype=np.int32), 4)
    path = tmp_path / 'omniglot8.npz'
    np.savez(
        path,
        images=np.arange(12, dtype=np.uint8)[:, None, None] * np.ones((1, 6, 6), np.uint8),
        identity=identity,
        drawer=drawer,
        alphabet=(identity == 2).astype(np.int32),
        alphabet_names=np.array(['Greek', 'Sanskrit']),
        split=(identity == 2).astype(np.int32),
        character_number=identity,
    )
    return path


@pytest.fixture
def nyala_file(tmp_path) -> Path:
    """A tiny pack with the keys of nyala.npz: 3 animals x 2 sightings x 2 flanks."""
    jpegs = [
        write_image(tmp_path / 'jpeg' / f'{index:02d}.jpg', value=index).read_bytes()
        for index in range(12)
    ]
    index = np.arange(12)
    path = tmp_path / 'nyala.npz'
    np.savez(
        path,
        jpeg=np.frombuffer(b''.join(jpegs), np.uint8),
        offsets=np.cumsum([0, *map(len, jpegs)]),
        identity=(index // 4).astype(np.int32),
        sighting=(index // 2).astype(np.int32),
        view=(index % 2).astype(np.uint8),
        split=(index >= 8).astype(np.uint8),
        names=np.array([f'{i // 4}/{i // 2}_{i % 2}.jpg' for i in index]),
    )
    return path
