"""Parity with the reference vectors of STViT and STViT-R."""

import pytest

from . import stvit_kinds_layers, stvit_kinds_model
from .golden import GoldenFile, golden_files

KINDS = {**stvit_kinds_layers.KINDS, **stvit_kinds_model.KINDS}


@pytest.mark.parametrize('path', golden_files('stvit'), ids=lambda path: path.stem)
def test_matches_reference(path):
    golden = GoldenFile(path)
    assert golden.kind in KINDS, f'{path}: no check for files of kind {golden.kind!r}'
    KINDS[golden.kind](golden)
    golden.assert_all_compared()
