"""Parity with the reference vectors of NViT."""

import pytest

from . import nvit_kinds_model, nvit_kinds_pruning
from .golden import GoldenFile, golden_files

KINDS = {**nvit_kinds_model.KINDS, **nvit_kinds_pruning.KINDS}


@pytest.mark.parametrize('path', golden_files('nvit'), ids=lambda path: path.stem)
def test_matches_reference(path):
    golden = GoldenFile(path)
    assert golden.kind in KINDS, f'{path}: no check for files of kind {golden.kind!r}'
    KINDS[golden.kind](golden)
    golden.assert_all_compared()
