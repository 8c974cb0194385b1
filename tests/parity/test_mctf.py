"""Parity with the reference vectors of MCTF and ToMe."""

import pytest

from . import mctf_kinds_functions, mctf_kinds_model
from .golden import GoldenFile, golden_files

KINDS = {**mctf_kinds_functions.KINDS, **mctf_kinds_model.KINDS}


@pytest.mark.parametrize('path', golden_files('mctf'), ids=lambda path: path.stem)
def test_matches_reference(path):
    golden = GoldenFile(path)
    assert golden.kind in KINDS, f'{path}: no check for files of kind {golden.kind!r}'
    KINDS[golden.kind](golden)
    golden.assert_all_compared()
