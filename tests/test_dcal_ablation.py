"""The ablation of DCAL: what its variants are, and that finished trainings are kept."""

import sys
from dataclasses import replace

import pytest

from benchmarks.dcal_ablation import SETS, VARIANTS, Training, configure, main
from benchmarks.train_table import spread
from vitdown.registry import MODELS


@pytest.mark.parametrize('name', SETS)
def test_variants_differ_in_their_branches_alone(name, tmp_path):
    configs = {v: configure(name, v, 1, 10, str(tmp_path)) for v in VARIANTS}
    shapes = {}
    for variant, cfg in configs.items():
        model = MODELS.build(cfg.model)
        shapes[variant] = {k: v.shape for k, v in model.backbone.state_dict().items()}
        branches = {
            branch for branch in ('glca', 'pwca') if getattr(model.head, branch, None) is not None
        }
        expected = {'baseline': set(), '+GLCA': {'glca'}, '+PWCA': {'pwca'}}
        assert branches == expected.get(variant, {'glca', 'pwca'}), variant
        for key in ('train_dataloader', 'test_dataloader', 'param_scheduler', 'train_cfg'):
            assert cfg[key] == configs['baseline'][key], (variant, key)
        assert cfg.optim_wrapper.optimizer == configs['baseline'].optim_wrapper.optimizer
    assert all(shape == shapes['baseline'] for shape in shapes.values())


def training(seed=0, name='omniglot', variant='DCAL', epochs=8):
    return Training(name, variant, seed, epochs, 'logs')


def test_a_training_is_that_of_its_seed_and_epochs():
    first, second = (configure('omniglot', 'DCAL', seed, 4, 'logs') for seed in (3, 5))
    assert (first.randomness.seed, second.randomness.seed) == (3, 5)
    assert first.train_cfg.max_epochs == 4


class FakeRunner:
    """A trained model that is worth as much as the branches it is tested with."""

    def __init__(self, cfg) -> None:
        self.model = MODELS.build(cfg.model)
        self.trained = False

    def train(self) -> None:
        self.trained = True

    def test(self) -> dict[str, float]:
        branch = getattr(self.model.head, 'infer_branch', 'both')
        return {'reid/mAP': {'both': 3.0, 'sa': 1.0, 'glca': 2.0}[branch]}


def test_branches_are_tested_one_by_one(tmp_path, monkeypatch):
    runners = []

    def build(cfg) -> FakeRunner:
        runners.append(FakeRunner(cfg))
        return runners[-1]

    monkeypatch.setattr('benchmarks.dcal_ablation.build_runner', build)
    rows = training().run()
    maps = {row: metrics['reid/mAP'] for row, metrics in rows.items()}
    assert maps == {'DCAL': 3.0, 'DCAL: SA alone': 1.0, 'DCAL: GLCA alone': 2.0}
    weights = {k: v for k, v in rows['DCAL'].items() if k.startswith('w/')}
    assert weights == {'w/sa': 0, 'w/glca': 0, 'w/pwca': 0}
    assert runners[0].trained
    assert list(training(variant='+PWCA').run()) == ['+PWCA']
    assert list(training(variant='baseline').run()) == ['baseline']


def test_results_are_kept_and_tabled(tmp_path, monkeypatch, capsys):
    trained = []

    def run(now: Training) -> dict[str, dict]:
        trained.append(now)
        both = {'reid/mAP': 10.0 + 2 * now.seed, 'reid/CMC@1': 20.0 + 4 * now.seed, 'w/pwca': 0.5}
        return {now.variant: both, f'{now.variant}: SA alone': {'reid/mAP': 1.0, 'reid/CMC@1': 2.0}}

    def call(*seeds: str) -> list[str]:
        arguments = ['--sets', 'omniglot', '--variants', 'DCAL', '--work-dir', str(tmp_path)]
        monkeypatch.setattr(sys, 'argv', ['', *arguments, '--seeds', *seeds])
        main()
        return capsys.readouterr().out.splitlines()[-4:]

    monkeypatch.setattr(Training, 'run', run)
    call('0')
    both = [
        '| set | model | epochs | seeds | mAP or top1 | CMC@1 or top5 | w |',
        '| --- | --- | --- | --- | --- | --- | --- |',
        '| omniglot | DCAL | 8 | 2 | 11.0 ± 1.4 | 22.0 ± 2.8 | pwca 0.50 |',
        '| omniglot | DCAL: SA alone | 8 | 2 | 1.0 ± 0.0 | 2.0 ± 0.0 | - |',
    ]
    assert call('0', '1') == call('0', '1') == both
    assert [now.seed for now in trained] == [0, 1]
    # With other images the results are another training's.
    monkeypatch.setitem(SETS, 'omniglot', replace(SETS['omniglot'], patch=16))
    assert training().config != trained[0].config
    call('0')
    assert [now.seed for now in trained] == [0, 1, 0]


def test_each_training_has_a_file_of_its_own():
    trainings = [
        training(seed, name, variant, epochs)
        for seed in (0, 1) for name in SETS for variant in VARIANTS for epochs in (8, 12)
    ]  # fmt: skip
    assert len({now.result.name for now in trainings}) == len(trainings)


def test_a_fingerprint_does_not_depend_on_where_the_data_is(monkeypatch):
    found = set()
    for folder in ('data', '/somewhere/else'):
        monkeypatch.setenv('VITDOWN_DATA', folder)
        found.add(training().config)
    assert len(found) == 1
    assert training(variant='+GLCA').config not in found


def test_one_seed_has_no_deviation():
    assert spread([1.25]) == '1.2'
    assert spread([1.0, 3.0]) == '2.0 ± 1.4'
