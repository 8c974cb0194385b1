"""Plotting tools, run as a user runs them."""

import json

import numpy as np
import pytest

from tests.conftest import run_tool


@pytest.fixture(scope='module')
def features(tmp_path_factory):
    """Features of 6 identities under 2 cameras, as tools/test.py --out writes them."""
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(6), 4)
    parts = {}
    for name in ('query', 'gallery'):
        noisy = np.eye(6, 16)[ids] + rng.normal(0, 0.3, (24, 16))
        parts[f'{name}_features'] = noisy.astype(np.float32)
        parts[f'{name}_ids'] = ids
        parts[f'{name}_cameras'] = np.full(24, len(parts))
        parts[f'{name}_paths'] = np.array([f'{name}{i}.jpg' for i in range(24)])
    path = tmp_path_factory.mktemp('features') / 'ours.npz'
    np.savez(path, **parts)
    return path


def test_curves(features, tmp_path):
    for kind in ('cmc', 'roc'):
        out = tmp_path / f'{kind}.svg'
        run_tool(
            'tools/visualization/vis_curves.py', kind, features, features, '--names', 'ours',
            'theirs', '--out', out,
        )  # fmt: skip
        assert '>theirs<' in out.read_text()


def test_feature_map(features, tmp_path):
    out = tmp_path / 'map.pdf'
    output = run_tool(
        'tools/visualization/vis_features.py', features, '--values', '3', '--out', out
    ).stdout
    assert '24 images, 3 values of identity' in output
    assert out.read_bytes().startswith(b'%PDF')
    failed = run_tool(
        'tools/visualization/vis_features.py', features, '--colour', 'site', '--out', out,
        check=False,
    )  # fmt: skip
    assert failed.returncode == 2
    assert "no column 'site', only ['camera', 'identity']" in failed.stderr


def test_training_curves(tmp_path):
    log = tmp_path / 'run' / '20240101' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    entries = [dict(loss=1 / step, step=step, iter=step, epoch=1) for step in range(1, 5)]
    log.write_text('\n'.join(map(json.dumps, entries)))
    tool = ('tools/visualization/vis_training.py', tmp_path / 'run', '--out')
    run_tool(*tool, tmp_path / 'training.png', '--values', 'loss')
    assert (tmp_path / 'training.png').read_bytes().startswith(b'\x89PNG')
    failed = run_tool(*tool, tmp_path / 'none.png', '--values', 'lr', check=False)
    assert failed.returncode == 2
    assert "no run logged 'lr'" in failed.stderr
