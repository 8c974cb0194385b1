import re

from tests.conftest import ROOT, run_tool


def test_demo_runs_from_data_to_table(tmp_path):
    """The demo on a smaller set for two epochs; another folder, so that it starts from nothing."""
    config = tmp_path / 'demo.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/dcal/dcal_vit-mini_1xb64-40e_synthetic-128x64.py'\n"
        'settings = dict(num_train_ids=16, num_test_ids=2, num_cameras=2, images_per_camera=2)\n'
        'train_dataloader = dict(num_workers=0, dataset=dict(settings=settings))\n'
        'val_dataloader = dict(num_workers=0, dataset=dict(settings=settings))\n'
        'test_dataloader = val_dataloader\n'
    )
    result = run_tool(
        'tools/demo.py', '--config', config, '--work-dir', tmp_path / 'work', '--epochs', '2',
        env={'VITDOWN_DATA': str(tmp_path / 'data')},
    )  # fmt: skip
    rows = dict(re.findall(r'^(untrained|trained)\s+([\d.]+)%', result.stdout, re.M))
    assert set(rows) == {'untrained', 'trained'}
    assert (tmp_path / 'work/epoch_2.pth').exists()
    assert len(list((tmp_path / 'work/ranking_lists').glob('*.png'))) == 4
