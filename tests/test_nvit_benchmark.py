"""benchmarks/nvit.py: results that are kept are of what is asked for."""

from argparse import Namespace

import pytest

from benchmarks.nvit import check_work_dir
from vitdown.engine.launch import ConfigError


def test_a_work_dir_keeps_results_of_one_setting(tmp_path):
    for name in ('model.pth', 'table.json'):
        (tmp_path / name).write_text(name)

    def settings(**changes) -> Namespace:
        given = dict(
            mode='prune', config='c.py', checkpoint=tmp_path / 'model.pth', target=0.5, seeds=[0],
            latency_table=tmp_path / 'table.json', epochs=5, minutes=1.0, criteria=['nvit'],
            work_dir=tmp_path / 'out', cfg_options={'model.backbone.img_size': (32, 32)},
        )  # fmt: skip
        return Namespace(**{**given, **changes})

    check_work_dir(settings())
    check_work_dir(settings(seeds=[0, 1], criteria=['random'], minutes=9.0))
    with pytest.raises(ConfigError, match='another target and epochs; name another --work-dir'):
        check_work_dir(settings(target=0.4, epochs=6))
    (tmp_path / 'model.pth').write_text('trained again')
    with pytest.raises(ConfigError, match='another checkpoint;'):
        check_work_dir(settings())
    (tmp_path / 'old' / 'nvit-0').mkdir(parents=True)
    (tmp_path / 'old' / 'nvit-0' / 'results.json').write_text('{}')
    with pytest.raises(ConfigError, match='holds results without their settings'):
        check_work_dir(settings(work_dir=tmp_path / 'old'))
