"""The ablation of DCAL: what its variants are, and that finished trainings are kept."""

import json
from dataclasses import replace

import pytest

from benchmarks.dcal_ablation import SETS, VARIANTS, Results, Training, configure, table
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
        return {'reid/mAP': {'both': 3.0, 'sa': 1.0, 'glca': 2.0}[self.model.head.infer_branch]}


def test_branches_are_tested_one_by_one(tmp_path, monkeypatch):
    runners = []

    def build(cfg) -> FakeRunner:
        runners.append(FakeRunner(cfg))
        return runners[-1]

    monkeypatch.setattr('benchmarks.dcal_ablation.build_runner', build)
    now, results = training(), Results(tmp_path / 'results.json')
    now.run(results)
    rows = [now.key(row) for row in ('DCAL', 'DCAL: SA alone', 'DCAL: GLCA alone')]
    assert [results.get(row, now.config)['reid/mAP'] for row in rows] == [3.0, 1.0, 2.0]
    weights = {k: v for k, v in results.get(rows[0], now.config).items() if k.startswith('w/')}
    assert weights == {'w/sa': 0, 'w/glca': 0, 'w/pwca': 0}
    assert runners[0].trained


def test_results_are_kept_and_tabled(tmp_path, capsys):
    path = tmp_path / 'results.json'
    for seed, value in enumerate((10.0, 12.0)):
        metrics = {'reid/mAP': value, 'reid/CMC@1': 2 * value, 'w/sa': value / 10, 'w/pwca': 0.5}
        Results(path).add(training(seed).key(), metrics, training(seed).config)
    part = {'reid/mAP': 1.0, 'reid/CMC@1': 2.0}
    Results(path).add(training().key('DCAL: SA alone'), part, training().config)
    plain = training(variant='baseline')
    table([plain, *(training(seed) for seed in range(3))], Results(path))
    assert capsys.readouterr().out.splitlines() == [
        '| set | model | epochs | seeds | mAP or top1 | CMC@1 or top5 | w |',
        '| --- | --- | --- | --- | --- | --- | --- |',
        '| omniglot | DCAL | 8 | 2 | 11.0 ± 1.4 | 22.0 ± 2.8 | sa 1.10, pwca 0.50 |',
        '| omniglot | DCAL: SA alone | 8 | 1 | 1.0 | 2.0 | - |',
    ]


def test_results_of_another_config_count_as_none(tmp_path, monkeypatch):
    results = Results(tmp_path / 'results.json')
    now = training()
    results.add(now.key(), {'reid/mAP': 1.0}, now.config)
    assert results.get(now.key(), training(seed=1).config) is not None
    monkeypatch.setitem(SETS, 'omniglot', replace(SETS['omniglot'], patch=16))
    assert training().key() == now.key()
    assert results.get(now.key(), training().config) is None


def test_a_fingerprint_does_not_depend_on_where_the_data_is(monkeypatch):
    found = set()
    for folder in ('data', '/somewhere/else'):
        monkeypatch.setenv('VITDOWN_DATA', folder)
        found.add(training().config)
    assert len(found) == 1
    assert training(variant='+GLCA').config not in found


def test_two_runs_on_one_file_keep_each_others_results(tmp_path):
    first, second = (Results(tmp_path / 'results.json') for _ in range(2))
    first.add('a', {'reid/mAP': 1.0}, 'x')
    second.add('b', {'reid/mAP': 2.0}, 'x')
    first.add('c', {'reid/mAP': 3.0}, 'x')
    assert set(second.read()) == {'a', 'b', 'c'}


def test_entries_without_a_fingerprint_count_once_they_are_adopted(tmp_path):
    path = tmp_path / 'results.json'
    path.write_text(json.dumps({'a': {'reid/mAP': 1.0}, 'b': {'reid/mAP': 2.0, 'config': 'y'}}))
    results = Results(path)
    assert results.get('a', 'x') is None
    for key in 'abc':
        results.adopt(key, 'x')
    assert results.get('a', 'x') == {'reid/mAP': 1.0, 'config': 'x'}
    assert results.get('b', 'x') is results.get('c', 'x') is None


def test_one_seed_has_no_deviation():
    assert spread([1.25]) == '1.2'
    assert spread([1.0, 3.0]) == '2.0 ± 1.4'
