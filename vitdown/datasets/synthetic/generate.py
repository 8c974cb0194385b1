"""Writing a procedural re-ID set to disk in the Market-1501 convention."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .identity import Identity, invent_identities
from .scene import KINDS, Camera, invent_cameras, render_distractor, render_view

MANIFEST = 'manifest.json'
# Raise it when the same settings would give other pictures.
_VERSION = 1
_DEFAULT_SIZES = {'person': (128, 64), 'vehicle': (96, 96)}


@dataclass(frozen=True)
class SyntheticSettings:
    """What a synthetic set consists of; equal settings give byte-identical files.

    Attributes:
        kind: ``'person'`` or ``'vehicle'``.
        num_train_ids: Identities for training.
        num_test_ids: Further identities for query and gallery.
        num_cameras: Cameras, 2 to 9; every identity is seen by all.
        images_per_camera: Images of an identity by each camera; of test identities, the first is
            a query, the others belong to the gallery.
        image_size: ``(H, W)`` in pixels; by default 128x64 for persons, 96x96 for vehicles.
        seed: Seed of identities, cameras and pictures.

    Raises:
        ValueError: If a value is out of range.
    """

    kind: str = 'person'
    num_train_ids: int = 60
    num_test_ids: int = 30
    num_cameras: int = 4
    images_per_camera: int = 3
    image_size: tuple[int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f'kind must be one of {sorted(KINDS)}, got {self.kind!r}')
        size = tuple(self.image_size or _DEFAULT_SIZES[self.kind])
        object.__setattr__(self, 'image_size', size)
        bounds = {
            'num_train_ids': (1, 999),
            'num_test_ids': (1, 8000),
            'num_cameras': (2, 9),
            'images_per_camera': (2, 1000),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f'{name} must be {low} to {high}, got {getattr(self, name)}')
        if len(size) != 2 or min(size) < 16:
            raise ValueError(f'image_size must be (H, W) of at least 16 pixels, got {size}')

    @property
    def name(self) -> str:
        """Folder name that tells sets of different settings apart."""
        height, width = self.image_size
        return (
            f'{self.kind}_{self.num_train_ids}+{self.num_test_ids}ids_{self.num_cameras}cams_'
            f'{self.images_per_camera}each_{height}x{width}_seed{self.seed}'
        )

    def manifest(self) -> dict:
        """Content of the manifest beside the images."""
        return {'version': _VERSION, **asdict(self), 'image_size': list(self.image_size)}


def generate_synthetic_reid(root: str | os.PathLike, settings: SyntheticSettings) -> Path:
    """Write a synthetic set below ``root``, unless it is there already.

    The folder appears under its name only when it is complete, so that a kill leaves nothing that
    passes for a set, and several processes may call this at the same time.

    Args:
        root: Folder of the set: ``bounding_box_train``, ``query``, ``bounding_box_test`` and a
            manifest.
        settings: What to generate.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder holds something else.
    """
    root = Path(root)
    if root.exists():
        _check_manifest(root, settings)
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{root.name}.', suffix='.tmp', dir=root.parent))
    try:
        _write_images(temporary, settings)
        (temporary / MANIFEST).write_text(json.dumps(settings.manifest(), indent=2) + '\n')
        temporary.chmod(0o755)
        try:
            temporary.rename(root)
        except OSError:
            # Another process was quicker.
            _check_manifest(root, settings)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def _check_manifest(root: Path, settings: SyntheticSettings) -> None:
    path = root / MANIFEST
    if not path.is_file():
        raise ValueError(f'{root} is no synthetic re-ID set (no {MANIFEST}); name another folder')
    found = json.loads(path.read_text())
    wanted = settings.manifest()
    differences = [
        f'{key}={found.get(key)!r} instead of {wanted[key]!r}'
        for key in wanted
        if found.get(key) != wanted[key]
    ]
    if differences:
        raise ValueError(
            f'{root} holds a synthetic set of other settings ({", ".join(differences)}); delete '
            'it or name another folder'
        )


def _write_images(root: Path, settings: SyntheticSettings) -> None:
    for folder in ('bounding_box_train', 'query', 'bounding_box_test'):
        (root / folder).mkdir()
    rng = np.random.default_rng((settings.seed, 0))
    cameras = invent_cameras(rng, settings.num_cameras)
    module = KINDS[settings.kind]
    count = settings.num_train_ids + settings.num_test_ids
    identities = invent_identities(rng, count, module.SLOTS, module.COARSE_CHOICES)

    total = count * settings.num_cameras * settings.images_per_camera
    total += 2 * _num_distractors(settings)
    with tqdm(
        total=total,
        desc=f'Drawing {root.parent.name}/{settings.name}',
        unit='image',
        delay=2,
        disable=not sys.stderr.isatty(),
    ) as progress:
        for name, data in _images(settings, identities, cameras):
            (root / name).write_bytes(data)
            progress.update()


def _num_distractors(settings: SyntheticSettings) -> int:
    """False detections in the gallery; there are as many junk images."""
    return max(2, settings.num_test_ids // 2)


def _images(
    settings: SyntheticSettings, identities: list[Identity], cameras: list[Camera]
) -> Iterator[tuple[str, bytes]]:
    """Names below the root and encoded images."""
    number = 0

    def name(folder: str, identity: int, camera: int) -> str:
        prefix = '-1' if identity < 0 else f'{identity:04d}'
        return f'{folder}/{prefix}_c{camera + 1}s1_{number:06d}_01.jpg'

    for index, identity in enumerate(identities):
        test = index >= settings.num_train_ids
        label = 1001 + index if test else 1 + index
        for camera_id, camera in enumerate(cameras):
            for view in range(settings.images_per_camera):
                number += 1
                # Every picture has a stream of its own: none depends on how many came before.
                rng = np.random.default_rng((settings.seed, 1, index, camera_id, view))
                folder = 'bounding_box_train'
                if test:
                    folder = 'bounding_box_test' if view else 'query'
                data = render_view(rng, settings.kind, identity, camera, settings.image_size)
                yield name(folder, label, camera_id), data

    # Detections that are nobody (identity 0), and fragments of somebody (-1, junk)
    for index in range(_num_distractors(settings)):
        number += 1
        camera_id = index % settings.num_cameras
        rng = np.random.default_rng((settings.seed, 2, index))
        data = render_distractor(rng, cameras[camera_id], settings.image_size)
        yield name('bounding_box_test', 0, camera_id), data
        number += 1
        victim = identities[settings.num_train_ids + index % settings.num_test_ids]
        data = render_view(
            rng, settings.kind, victim, cameras[camera_id], settings.image_size, cropped=True
        )
        yield name('bounding_box_test', -1, camera_id), data
