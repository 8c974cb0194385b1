"""The manifest of a protected copy: its format, and the journal that stands in for it meanwhile."""

import hashlib
import json
import secrets
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vitdown.files import write_atomically

from .key import Key
from .settings import ProtectionError, Settings, SourceImage

MANIFEST = 'conv_unlearnable.json'
# What is written so far, while the manifest is not complete
JOURNAL = 'conv_unlearnable.jsonl'
_VERSION = 2
_ENTRY = dict(source=str, file=str, label=int, filtered=bool, source_sha256=str, sha256=str)
_FIELDS = dict(
    complete=bool, settings=dict, num_images=int, num_classes=int, source_digest=str, key_salt=str,
    key_fingerprint=str, files=list,
)  # fmt: skip
_OF_THE_SOURCE = ('num_images', 'num_classes', 'source_digest')


def contents(images: Sequence[SourceImage], num_classes: int, settings: Settings) -> dict:
    """What a manifest says about source and settings."""
    return dict(
        settings=asdict(settings),
        num_images=len(images),
        num_classes=num_classes,
        source_digest=_digest(images),
    )


def new_manifest(wanted: dict, key: Key) -> dict:
    """A manifest of these :func:`contents`, without files."""
    salt = secrets.token_bytes(16)
    return dict(
        method='class-wise convolution (ConvUnlearnable)',
        version=_VERSION,
        complete=False,
        **wanted,
        key_salt=salt.hex(),
        key_fingerprint=key.fingerprint(salt),
        files=[],
    )


def read_manifest(output: Path) -> dict:
    """The manifest of an output folder.

    Raises:
        ProtectionError: There is none, it is damaged, or another version of this code wrote it.
    """
    path = output / MANIFEST
    if not path.is_file():
        raise ProtectionError(f'{output} has no {MANIFEST}: it is no output of this tool.')
    try:
        manifest = json.loads(path.read_text())
        version = manifest['version']
        if version == _VERSION:
            _check_manifest(manifest)
    except (ValueError, KeyError, TypeError) as error:
        raise ProtectionError(
            f'{path} is damaged ({error}). Bring it back, or protect into a new folder.'
        ) from error
    if version != _VERSION:
        raise ProtectionError(f'{path} is of version {version}, this code writes {_VERSION}.')
    return manifest


def _check_manifest(manifest: dict) -> None:
    if not _fits(manifest, _FIELDS):
        wrong = [name for name, kind in _FIELDS.items() if not isinstance(manifest.get(name), kind)]
        raise ValueError(f'no valid {", ".join(wrong)}')
    bytes.fromhex(manifest['key_salt'])
    Settings(**manifest['settings'])
    if not all(_fits(entry, _ENTRY) for entry in manifest['files']):
        raise ValueError('no valid files')


def _fits(entry: Any, kinds: dict[str, type]) -> bool:
    """Whether it is a dict with values of these types."""
    return isinstance(entry, dict) and all(
        isinstance(entry.get(name), kind) for name, kind in kinds.items()
    )


def write_manifest(manifest: dict, output: Path) -> None:
    """Write the manifest of an output folder."""
    write_atomically((json.dumps(manifest, indent=1) + '\n').encode(), output / MANIFEST)


def check_same(manifest: dict, wanted: dict, key: Key, output: Path) -> None:
    """Refuse a manifest of other images or settings than those wanted, or of another key.

    Raises:
        ProtectionError: They differ.
    """
    if manifest['key_fingerprint'] != key.fingerprint(bytes.fromhex(manifest['key_salt'])):
        raise ProtectionError(f'{output} was made with another key.')
    settings = wanted['settings']
    differences = [
        f'{name} {manifest["settings"].get(name)!r} instead of {settings[name]!r}'
        for name in settings
        if manifest['settings'].get(name) != settings[name]
    ]
    if differences:
        raise ProtectionError(
            f'{output} was made with other settings: {", ".join(differences)}. Use the same, or '
            'name a new folder.'
        )
    if any(manifest[name] != wanted[name] for name in _OF_THE_SOURCE):
        raise ProtectionError(
            f'{output} was made from other files: {manifest["num_images"]} images of '
            f'{manifest["num_classes"]} classes then, {wanted["num_images"]} of '
            f'{wanted["num_classes"]} now, or other names. Filters follow from the sorted classes, '
            'so name a new folder.'
        )


def describe(
    image: SourceImage, name: str, chosen: bool, source_digest: str, content: bytes
) -> dict:
    """What the manifest says about a file."""
    return dict(
        source=image.name,
        file=name,
        label=image.label,
        filtered=bool(chosen),
        source_sha256=source_digest,
        sha256=hashlib.sha256(content).hexdigest(),
    )


class Journal:
    """Lines about images, each added before its image is there."""

    def __init__(self, output: Path, entries: Sequence[dict]) -> None:
        self.path = path = output / JOURNAL
        self._lock = threading.Lock()
        self.entries = {entry['file']: entry for entry in entries}
        if path.is_file():
            for line in path.read_text(errors='replace').splitlines():
                # A kill may leave half a line.
                with suppress(json.JSONDecodeError):
                    entry = json.loads(line)
                    if _fits(entry, _ENTRY):
                        self.entries[entry['file']] = entry

    def add(self, entry: dict) -> None:
        with self._lock, open(self.path, 'a') as file:
            file.write(f'\n{json.dumps(entry)}')


def pixel_digest(pixels: np.ndarray) -> str:
    """Digest of shape and values."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def file_digest(path: Path) -> str | None:
    """Digest of a file's content; None where there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _digest(images: Sequence[SourceImage]) -> str:
    """Digest of names and labels in order."""
    lines = '\n'.join(f'{image.label} {image.name}' for image in images)
    return hashlib.sha256(lines.encode()).hexdigest()
