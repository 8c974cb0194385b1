"""Parity with the reference vectors of class-wise convolution and of the attacks."""

import pytest

from .conv_unlearnable_kinds import KINDS
from .golden import GoldenFile, golden_files


@pytest.mark.parametrize('path', golden_files('cuda_unlearnable'), ids=lambda path: path.stem)
def test_matches_reference(path):
    golden = GoldenFile(path)
    assert golden.kind in KINDS, f'{path}: no check for files of kind {golden.kind!r}'
    KINDS[golden.kind](golden)
    golden.assert_all_compared()
