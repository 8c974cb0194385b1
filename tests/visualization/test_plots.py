"""Plots show the numbers they were given, and files are what their names say."""

import json
import sys

import numpy as np
import pytest

from vitdown.evaluation.functional import RocCurve
from vitdown.visualization.curves import Series, draw_cmc, draw_roc, draw_training
from vitdown.visualization.feature_map import draw_feature_map, project_tsne, project_umap
from vitdown.visualization.style import plot, save_plot
from vitdown.visualization.training_log import read_scalars, series_of


@pytest.mark.parametrize(
    ('suffix', 'magic'), [('.pdf', b'%PDF'), ('.png', b'\x89PNG'), ('.svg', b'<?xml')]
)
def test_files_are_equal_each_time(tmp_path, suffix, magic):
    contents = []
    for number in range(2):
        figure = draw_cmc({'ours': [0.5, 0.75]})
        save_plot(figure, tmp_path / 'new' / f'{number}{suffix}')
        contents.append((tmp_path / 'new' / f'{number}{suffix}').read_bytes())
    assert contents[0] == contents[1]
    assert contents[0].startswith(magic)


def test_text_stays_text(tmp_path):
    save_plot(draw_cmc({'ours': [0.5], 'baseline': [0.4]}), tmp_path / 'cmc.svg')
    text = (tmp_path / 'cmc.svg').read_text()
    assert '>rank k<' in text
    assert '>baseline<' in text


def test_other_endings_are_refused(tmp_path):
    with plot() as (figure, _), pytest.raises(ValueError, match=r'\.pdf, \.png, \.svg'):
        save_plot(figure, tmp_path / 'plot.jpg')


def test_cmc_in_percent():
    (axes,) = draw_cmc({'ours': [0.5, 0.75]}).axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[1, 50], [2, 75]])
    assert axes.get_legend() is None


def test_roc_beside_chance():
    curve = RocCurve(np.array([0, 0.1, 1]), np.array([0, 0.8, 1]), np.array([np.inf, 0.5, -1]))
    (axes,) = draw_roc({'a': curve, 'b': curve}).axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0, 0], [10, 80], [100, 100]])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ['a', 'b']
    assert axes.get_xscale() == 'log'


def test_training_curves_of_a_resumed_run(tmp_path):
    logs = [
        [dict(loss=3.0, step=1, iter=1, epoch=1), {'reid/mAP': 10.0, 'step': 1},
         dict(loss=9.0, step=2, iter=2, epoch=2)],
        [dict(loss=2.0, step=2, iter=2, epoch=2), {'reid/mAP': 20.0, 'step': 2}],
    ]  # fmt: skip
    for number, entries in enumerate(logs):
        folder = tmp_path / f'2024010{number}' / 'vis_data'
        folder.mkdir(parents=True)
        lines = [json.dumps(entry) for entry in entries]
        # A kill tears the last line.
        (folder / 'scalars.json').write_text('\n'.join([*lines, '{"loss": 1']))
    series = series_of(read_scalars(tmp_path), ['loss', 'reid/mAP', 'lr'])
    assert series == {
        'loss': Series('iteration', [1, 2], [3.0, 2.0]),
        'reid/mAP': Series('epoch', [1, 2], [10.0, 20.0]),
    }
    left, right = draw_training({'run': series}).axes
    assert (left.get_title(), left.get_xlabel()) == ('loss', 'iteration')
    np.testing.assert_allclose(right.lines[0].get_xydata(), [[1, 10], [2, 20]])


def test_logs_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match='is it a work dir'):
        read_scalars(tmp_path)
    (tmp_path / 'scalars.json').write_text('no log\n{}\n')
    with pytest.raises(ValueError, match='line 1 is no JSON'):
        read_scalars(tmp_path / 'scalars.json')
    with pytest.raises(ValueError, match='nothing to draw'):
        draw_training({'run': {}})


@pytest.mark.parametrize('project', [project_tsne, project_umap])
def test_neighbours_stay_together(project):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 15)
    # Lengths don't matter, directions do.
    features = np.eye(3, 16)[labels] + rng.normal(0, 0.05, (45, 16))
    points = project(features * rng.uniform(1, 5, (45, 1)))
    assert points.shape == (45, 2)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(45)
    assert (labels[distances.argmin(axis=1)] == labels).all()


@pytest.mark.parametrize('project', [project_tsne, project_umap])
def test_a_plane_needs_a_few_features(project):
    with pytest.raises(ValueError, match='at least 3 features'):
        project(np.eye(2))


def test_umap_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'umap', None)
    with pytest.raises(ImportError, match=r'pip install "vitdown\[umap\]"'):
        project_umap(np.eye(5))


def test_a_map_draws_each_point_once():
    points = np.arange(24, dtype=float).reshape(12, 2)
    labels = np.arange(12) % 10
    (axes,) = draw_feature_map(points, labels, np.arange(12) >= 10).axes
    drawn = np.concatenate([part.get_offsets() for part in axes.collections])
    np.testing.assert_allclose(np.sort(drawn[:, 0]), points[:, 0])
    assert axes.get_legend() is None
    (small,) = draw_feature_map(points[:2], ['a', 'b'], what='site').axes
    assert small.get_legend().get_title().get_text() == 'site'
