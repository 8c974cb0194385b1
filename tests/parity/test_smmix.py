"""Parity with the reference vectors of SMMix."""

import pytest

from .golden import GoldenFile, golden_files
from .smmix_kinds import KINDS


@pytest.mark.parametrize('path', golden_files('smmix'), ids=lambda path: path.stem)
def test_matches_reference(path):
    golden = GoldenFile(path)
    assert golden.kind in KINDS, f'{path}: no check for files of kind {golden.kind!r}'
    KINDS[golden.kind](golden)
    golden.assert_all_compared()
