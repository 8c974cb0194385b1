"""How the arguments of tools/test.py change a config."""

import sys

import pytest
import torch
from mmengine.config import Config

from tools.test import apply_args, parse_args


@pytest.fixture
def metric_after(tmp_path, monkeypatch):
    """The config's re-ID metric after the arguments were applied to it."""
    checkpoint = tmp_path / 'model.pth'
    torch.save({'state_dict': {}}, checkpoint)
    monkeypatch.setenv('LOCAL_RANK', '0')

    def apply(metric, *args):
        cfg = Config(dict(test_evaluator=dict(type='ReIDMetric', **metric), test_cfg=dict()))
        monkeypatch.setattr(sys, 'argv', ['test.py', 'config.py', str(checkpoint), *args])
        apply_args(cfg, parse_args())
        return cfg.test_evaluator

    return apply


@pytest.mark.parametrize('given', [{}, {'rerank': False}, {'rerank': True}])
def test_rerank_turns_it_on(metric_after, given):
    assert metric_after(given, '--rerank').rerank is True


def test_rerank_keeps_the_options_of_the_config(metric_after):
    assert metric_after({'rerank': {'k1': 50}}, '--rerank').rerank == {'k1': 50}


@pytest.mark.parametrize(
    ('given', 'args', 'wanted'),
    [
        ({}, [], True),
        ({}, ['3'], {'k': 3}),
        ({'k': 4, 'alpha': 3}, [], {'k': 4, 'alpha': 3}),
        ({'k': 4, 'alpha': 3}, ['5'], {'k': 5, 'alpha': 3}),
        ({'k': 4}, ['1'], {'k': 1}),
    ],
)
def test_query_expansion_changes_what_is_given(metric_after, given, args, wanted):
    metric = metric_after({'query_expansion': given}, '--query-expansion', *args)
    assert metric.query_expansion == wanted
