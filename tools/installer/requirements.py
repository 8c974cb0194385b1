"""Reads ``requirements.txt``, whose headings ``# [name] ...`` split it into groups."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import InstallError

GROUPS = ('build', 'torch', 'mmcv', 'libraries')

_HEADING = re.compile(r'#\s*\[(\w+)\]')
_NAME = re.compile(r'[A-Za-z0-9._-]+')


def read_groups(path: Path) -> dict[str, list[str]]:
    """Return the requirements of each group of :data:`GROUPS`, in the order of the file.

    Raises:
        InstallError: The file or a group is missing, a group is unknown, or a requirement has no
            exact version or stands before the first heading.
    """
    if not path.is_file():
        raise InstallError(f'{path} is missing', 'restore it: git checkout -- requirements.txt')
    groups: dict[str, list[str]] = {}
    current: list[str] | None = None
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1):
        line = line.strip()
        heading = _HEADING.match(line)
        if heading:
            if heading[1] not in GROUPS:
                raise _invalid(path, number, f'unknown group [{heading[1]}]')
            current = groups.setdefault(heading[1], [])
        elif line and not line.startswith('#'):
            requirement = line.split(' #')[0].strip()
            if current is None:
                raise _invalid(path, number, f'"{requirement}" stands before the first group')
            if '==' not in requirement.split(';')[0]:
                raise _invalid(path, number, f'"{requirement}" has no exact version (==)')
            current.append(requirement)
    missing = [name for name in GROUPS if not groups.get(name)]
    if missing:
        raise InstallError(
            f'{path} has no requirements in group [{missing[0]}]',
            f'list them under a heading "# [{missing[0]}] ..."',
        )
    return groups


def project_name(requirement: str) -> str:
    """Return the name of a requirement in its normal form: ``'Foo_Bar==1.0'`` -> ``'foo-bar'``."""
    return re.sub(r'[-_.]+', '-', _NAME.match(requirement)[0]).lower()


def pick(requirements: list[str], name: str) -> list[str]:
    """Return those of ``requirements`` that are about project ``name``.

    There can be several, with markers for different versions of Python.
    """
    return [requirement for requirement in requirements if project_name(requirement) == name]


def _invalid(path: Path, number: int, problem: str) -> InstallError:
    groups = ', '.join(f'[{name}]' for name in GROUPS)
    return InstallError(
        f'{path}, line {number}: {problem}',
        f'list requirements as name==version below the headings {groups}',
    )
