"""The rules that a machine can check: who imports whom, and how the code is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[1]


def test_import_contracts_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    status = lint_imports(config_filename=str(ROOT / 'pyproject.toml'), no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_types_of_the_public_modules_fit(tmp_path: Path) -> None:
    mypy = [sys.executable, '-m', 'mypy', '--cache-dir', str(tmp_path)]
    result = subprocess.run(mypy, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize('command', [['check'], ['format', '--check']], ids=' '.join)
def test_ruff_finds_nothing(command: list[str]) -> None:
    ruff = [sys.executable, '-m', 'ruff', *command, '--no-cache', str(ROOT)]
    result = subprocess.run(ruff, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
