"""Parity with the reference vectors of NKD, USKD, KD, DKD and ViTKD."""

import pytest

from .distillation_kinds import KINDS
from .golden import GoldenFile, golden_files


@pytest.mark.parametrize('path', golden_files('nkd_uskd'), ids=lambda path: path.stem)
def test_matches_reference(path):
    golden = GoldenFile(path)
    assert golden.kind in KINDS, f'{path}: no check for files of kind {golden.kind!r}'
    KINDS[golden.kind](golden)
    golden.assert_all_compared()
