"""The ablation of DCAL: what its variants are, and that finished trainings are kept."""

import pytest

from benchmarks.dcal_ablation import SETS, VARIANTS, Results, configure, table
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


def test_results_are_kept_and_tabled(tmp_path, capsys):
    path = tmp_path / 'results.json'
    for seed, value in enumerate((10.0, 12.0)):
        metrics = {'reid/mAP': value, 'reid/CMC@1': 2 * value}
        Results(path).add(Results.key('omniglot', 'DCAL', seed, 8), metrics)
    table('omniglot', ['baseline', 'DCAL'], 8, [0, 1, 2], Results(path))
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == '| omniglot | DCAL | 8 | 2 | 11.0 ± 1.4 | 22.0 ± 2.8 |'
