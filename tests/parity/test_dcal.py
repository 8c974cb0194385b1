"""Parity with the reference vectors of DCAL and the TransReID baseline."""

import pytest

from . import dcal_kinds_dcal, dcal_kinds_evaluation, dcal_kinds_model
from .golden import GoldenFile, golden_files

KINDS = {**dcal_kinds_model.KINDS, **dcal_kinds_evaluation.KINDS, **dcal_kinds_dcal.KINDS}


@pytest.mark.parametrize('path', golden_files('dcal'), ids=lambda path: path.stem)
def test_matches_reference(path):
    golden = GoldenFile(path)
    assert golden.kind in KINDS, f'{path}: no check for files of kind {golden.kind!r}'
    KINDS[golden.kind](golden)
    golden.assert_all_compared()
