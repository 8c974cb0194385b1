"""benchmarks/training_hooks_evidence.py: what is run."""

import argparse
import sys

import pytest

from benchmarks.evidence import Run
from benchmarks.training_hooks_evidence import build_runs, parse_args
from vitdown.engine.launch import ConfigError, add_config_arguments, load_config
from vitdown.registry import HOOKS, MODELS


def runs(monkeypatch, *arguments: str) -> list[Run]:
    monkeypatch.setattr(sys, 'argv', ['', *arguments])
    return build_runs(parse_args())


def test_every_row_fits_its_config(tmp_path, monkeypatch):
    """The training reads the command line, and its model and hooks build."""
    (tmp_path / 'teacher.pth').touch()
    rows = runs(monkeypatch, '--reid-teacher', str(tmp_path / 'teacher.pth'), '--images', '70')
    assert len({row.name for row in rows}) == len(rows) == 4 + 2 + 3 + 5 + 2 + 5
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    for row in rows:
        args, _ = parser.parse_known_args(row.arguments(3, tmp_path))
        cfg = load_config(args.config, args.cfg_options, args.work_dir)
        model = MODELS.build(cfg.model)
        if row.name.endswith(', CutMix'):
            (mixing,) = model.data_preprocessor.batch_augments.augments
            assert type(mixing).__name__ == 'CutMix'
        for hook in cfg.get('custom_hooks') or []:
            HOOKS.build(hook)
        assert cfg.randomness.seed == 3
        assert cfg.train_cfg.val_interval == cfg.train_cfg.max_epochs
        assert cfg.train_dataloader.dataset.get('indices', 70) == 70


def test_the_teacher_of_characters_must_be_there(monkeypatch):
    with pytest.raises(ConfigError, match='no teacher nowhere.pth; train it with'):
        runs(monkeypatch, '--groups', 'reid-distill', '--reid-teacher', 'nowhere.pth')


def test_depth_of_the_teacher(monkeypatch):
    rows = runs(monkeypatch, '--groups', 'distill', '--teacher-depth', '56')
    for row in rows[1:]:
        assert row.options['custom_hooks.0.teacher.backbone.depth'] == 56
        assert 'resnet56' in row.options['custom_hooks.0.teacher_checkpoint']
