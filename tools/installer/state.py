"""Remembers which steps are done, so that a second installation only does what has changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

FILE_NAME = 'installed.json'


def chain_keys(inputs: dict[str, object], after: dict[str, str | None]) -> dict[str, str]:
    """Return a key for each step that changes when its input or an earlier step's key changes.

    Args:
        inputs: What each step depends on (anything JSON can hold), earlier steps first.
        after: The step that each step builds on, None for the first one.
    """
    keys: dict[str, str] = {}
    for name, value in inputs.items():
        previous = after[name]
        text = json.dumps([keys[previous] if previous else '', value], sort_keys=True)
        keys[name] = hashlib.sha256(text.encode()).hexdigest()
    return keys


def read(venv: Path) -> dict[str, str]:
    """Return the keys of the steps that are done in ``venv``; empty for a new or foreign one."""
    try:
        done = json.loads((venv / FILE_NAME).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return done if isinstance(done, dict) else {}


def write(venv: Path, done: dict[str, str]) -> None:
    """Store the keys of the steps that are done; an interruption leaves the old or the new file."""
    partial = venv / (FILE_NAME + '.partial')
    partial.write_text(json.dumps(done, indent=1), encoding='utf-8')
    partial.replace(venv / FILE_NAME)
