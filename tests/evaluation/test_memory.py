"""Peak memory of the blockwise computations, in a process of its own."""

import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from vitdown.evaluation.functional.inputs import blocks_of

MEASURE = """
import resource
import sys
import numpy as np
import torch
from vitdown.evaluation import functional

torch.set_num_threads(1)
name, bound, num_ids, equal = sys.argv[1], *map(int, sys.argv[2:])


def call(num_query, num_gallery, num_ids):
    generator = np.random.default_rng(0)
    query, gallery = (
        np.ones((n, 16), np.float32) if equal else generator.normal(size=(n, 16)).astype(np.float32)
        for n in (num_query, num_gallery)
    )
    ids = [generator.integers(0, num_ids, n) for n in (num_query, num_gallery)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    getattr(functional, name)(query, gallery, *ids, max_memory_mb=bound)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


call(5, 50, 2)  # what is loaded on the first call
print(call(256, 30_000, num_ids))
"""


@pytest.mark.parametrize(
    ('name', 'num_ids', 'equal'),
    [
        ('evaluate_ranking', 2, 0),
        ('evaluate_ranking', 2000, 1),
        ('tpr_at_fpr', 2000, 0),
        ('topk_ranking', 2, 0),
    ],
)
def test_memory_stays_near_its_bound(name, num_ids, equal):
    args = [name, '64', str(num_ids), str(equal)]
    peak = subprocess.run(
        [sys.executable, '-c', MEASURE, *args], cwd=ROOT, check=True, capture_output=True, text=True
    )
    # About 20 MiB, whatever the bound, are copies of features, buffers of the matrix products, and
    # histograms.
    assert float(peak.stdout.splitlines()[-1]) < 2 * 64


def test_blocks_fit_the_bound_and_cover_all_rows():
    row_bytes = np.array([3, 1, 1, 5, 1, 1, 1, 1, 5]) * 2**20
    blocks = list(blocks_of(row_bytes, 5, (0, 9)))
    assert blocks == [(0, 3), (3, 4), (4, 8), (8, 9)]
    assert list(blocks_of(row_bytes, 5, (1, 8), max_rows=3)) == [(1, 3), (3, 4), (4, 7), (7, 8)]
    assert list(blocks_of(row_bytes, float('inf'), (0, 9))) == [(0, 9)]
    with pytest.raises(ValueError, match='max_memory_mb=4 is too little .* at least 5'):
        list(blocks_of(row_bytes, 4, (0, 2)))
