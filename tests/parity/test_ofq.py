"""Parity with the reference vectors of OFQ."""

import pytest

from . import ofq_kinds_functions, ofq_kinds_model
from .golden import GoldenFile, golden_files

KINDS = {**ofq_kinds_functions.KINDS, **ofq_kinds_model.KINDS}


@pytest.mark.parametrize('path', golden_files('ofq'), ids=lambda path: path.stem)
def test_matches_reference(path):
    golden = GoldenFile(path)
    assert golden.kind in KINDS, f'{path}: no check for files of kind {golden.kind!r}'
    KINDS[golden.kind](golden)
    golden.assert_all_compared()
