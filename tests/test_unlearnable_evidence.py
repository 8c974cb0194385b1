"""benchmarks/unlearnable_evidence.py: what is run, and which results are kept."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence import Run, collect, write_result
from benchmarks.unlearnable_evidence import GROUPS, Experiment, as_run, clean_rest, main
from tests.conftest import ROOT
from vitdown.datasets.unlearnable import Key, poison_mask
from vitdown.engine.launch import load_config

KEY = Key('seed:0')


def name(experiment: Experiment, key: Key, seed: int) -> str:
    return as_run(experiment, key).result_name(seed)


def test_every_row_fits_its_config():
    rows = [row for group in GROUPS.values() for row in group]
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        full = load_config(str(ROOT / 'configs' / row.config))
        cfg = load_config(str(ROOT / 'configs' / row.config), row.options)
        epochs = cfg.train_cfg.max_epochs, full.train_cfg.max_epochs
        assert cfg.train_cfg.val_interval == epochs[0]
        # Whoever trains less, or attacks less, than the config says so.
        if epochs[0] < epochs[1]:
            assert f'{epochs[0]} of {epochs[1]} epochs' in row.row
        for hook, whole in zip(cfg.get('custom_hooks') or [], full.get('custom_hooks') or []):
            assert f'{hook.steps} of {whole.steps} steps' in row.row


def test_every_defence_has_a_row_of_clean_images():
    names = {row.name for group in GROUPS.values() for row in group}
    for defence in ('L-inf AT', 'L2 AT', 'DAT'):
        assert {f'CNN, clean, {defence}', f'CNN, protected, {defence}'} <= names
    for percent in (50, 80):
        for model in ('CNN', 'ViT'):
            assert f'{model}, {percent} % protected' in names
            assert f'{model}, the clean {100 - percent} % alone' in names


def test_the_vit_is_attacked_as_the_cnn_is():
    attacks = [load_config(str(ROOT / 'configs' / row.config), row.options).custom_hooks
               for group in ('attack', 'vit-attack') for row in GROUPS[group]]  # fmt: skip
    assert attacks[1:] == attacks[:-1]


@pytest.mark.parametrize('group', ['fraction', 'vit-fraction'])
def test_the_clean_rest_sees_as_many_batches(group):
    for mixed, rest in zip(GROUPS[group][::2], GROUPS[group][1::2]):
        whole, part = (load_config(str(ROOT / 'configs' / row.config), row.options)
                       for row in (mixed, rest))  # fmt: skip
        epochs = whole.train_cfg.max_epochs, part.train_cfg.max_epochs
        assert epochs[0] == pytest.approx(epochs[1] * (1 - rest.clean_rest_of))
        assert part.param_scheduler.get('total_steps', epochs[1]) == epochs[1]


def test_models_of_filtered_tests_are_those_of_clean_ones():
    """They train on what the rows with clean tests train on, and only test on something else."""
    for row in GROUPS['mechanism'][1:]:
        cfg = load_config(str(ROOT / 'configs' / row.config), row.options)
        train, test = (loader.dataset.pipeline[0] for loader in (cfg.train_dataloader,
                                                                 cfg.val_dataloader))  # fmt: skip
        assert train.get('poison_fraction', 1.0) == float('protected' in row.name)
        assert test.get('class_shift', 0) == int('rotated' in row.name)
        assert test.type == train.type == 'ConvUnlearnable'
        assert cfg.test_dataloader.dataset.pipeline == cfg.val_dataloader.dataset.pipeline


def test_clean_rest_is_what_the_fraction_leaves():
    rest = clean_rest(0.8, KEY)
    chosen = poison_mask(0, 10, 3, 10000, 0.8)
    assert 1800 < len(rest) < 2200
    assert not chosen[rest].any()
    assert np.sum(~chosen) == len(rest)


def test_a_result_belongs_to_its_settings():
    row = GROUPS['attack'][1]
    assert name(row, KEY, 0) == name(row, Key('seed:0'), 0)
    others = [
        name(replace(row, options={'custom_hooks.0.steps': 10}), KEY, 0),
        name(replace(row, clean_rest_of=0.5), KEY, 0),
        name(row, Key('seed:1'), 0),
        name(row, KEY, 1),
    ]
    assert len({name(row, KEY, 0), *others}) == 5


def test_kept_results_are_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('VITDOWN_UNLEARNABLE_KEY', 'seed:0')
    row = GROUPS['attack'][0]
    for seed, value in ((0, 10.0), (1, 20.0)):
        result = tmp_path / f'{name(row, KEY, seed)}.json'
        write_result(result, as_run(row, KEY).content, value)
    arguments = ['', '--groups', 'attack', '--work-dir', str(tmp_path), '--minutes', '-1']
    monkeypatch.setattr(sys, 'argv', arguments)
    main()
    table = '| CNN, clean, L-inf AT (3 of 10 steps) | top1 | 15.0 ± 7.1 | 2 |'
    assert capsys.readouterr().out.splitlines()[-1] == table


def test_a_result_belongs_to_the_content_of_its_config(tmp_path, monkeypatch, capsys):
    trained = []

    def train(run: Run, seed: int, work_dir: Path) -> float:
        trained.append(work_dir)
        return 10.0 * len(trained)

    monkeypatch.setattr(Run, 'train', train)
    config = tmp_path / 'config.py'

    def call(steps: int) -> str:
        config.write_text(f"custom_hooks = [dict(type='PGDTrainingHook', steps={steps})]\n")
        collect([Run('row', str(config))], [0], str(tmp_path))
        return capsys.readouterr().out.splitlines()[-1]

    assert call(3) == call(3) == '| row | top1 | 10.0 | 1 |'
    assert call(4) == call(4) == '| row | top1 | 20.0 | 1 |'
    # Not in the folder of the other config, whose training would be resumed
    assert len(set(trained)) == len(trained) == 2


def test_fingerprints_do_not_depend_on_places(monkeypatch):
    row = GROUPS['attack'][0]
    found = set()
    for folder in ('/somewhere', 'else/where'):
        monkeypatch.setenv('VITDOWN_DATA', folder)
        found.add(as_run(row, KEY).content)
    assert len(found) == 1
    found.add(as_run(replace(row, options={**row.options, 'custom_hooks.0.eps': 0.1}), KEY).content)
    assert len(found) == 2
