"""tools/train.py and tools/test.py as a user runs them."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, run_tool
from vitdown.checkpoint import load_checkpoint_file


@pytest.fixture(scope='module')
def trained(tmp_path_factory, tiny_config) -> Path:
    """Work dir of an uninterrupted run of four epochs."""
    work_dir = tmp_path_factory.mktemp('trained')
    run_tool('tools/train.py', tiny_config, '--work-dir', work_dir)
    return work_dir


def scalars(work_dir: Path) -> list[dict]:
    """What the logger wrote for every iteration, over all runs in a work dir."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def losses(work_dir: Path, epochs: set[int] | None = None) -> list[tuple[int, float]]:
    return [
        (entry['epoch'], entry['loss'])
        for entry in scalars(work_dir)
        if 'loss' in entry and (epochs is None or entry['epoch'] in epochs)
    ]


def same_weights(first: Path, second: Path) -> bool:
    weights = [load_checkpoint_file(path)['state_dict'] for path in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    return all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_training_writes_checkpoints_and_metrics(trained):
    assert sorted(p.name for p in trained.glob('*.pth')) == ['epoch_3.pth', 'epoch_4.pth']
    maps = [entry['reid/mAP'] for entry in scalars(trained) if 'reid/mAP' in entry]
    assert len(maps) == 2
    assert all(5 < value < 95 for value in maps), 'no ceiling: figures can tell runs apart'
    epochs = {epoch for epoch, _ in losses(trained)}
    assert epochs == {1, 2, 3, 4}


KILL_HOOK = """
import os
import signal

from mmengine.hooks import Hook

from vitdown.registry import HOOKS


@HOOKS.register_module()
class KillHook(Hook):
    def after_train_iter(self, runner, batch_idx, **kwargs):
        if runner.epoch == 2 and batch_idx == 0:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_resumed_run_equals_the_uninterrupted_one(trained, tiny_config, tmp_path):
    """Same losses and the same final weights, bit for bit, also after a kill."""
    (tmp_path / 'kill_hook.py').write_text(KILL_HOOK)
    config = tmp_path / 'killed.py'
    config.write_text(
        f"_base_ = '{tiny_config}'\n"
        "custom_imports = dict(imports=['kill_hook'])\n"
        "custom_hooks = [dict(type='KillHook')]\n"
    )
    args = ('--work-dir', tmp_path)
    path = {'PYTHONPATH': f'{ROOT}:{tmp_path}'}
    killed = run_tool('tools/train.py', config, *args, check=False, env=path)
    assert killed.returncode == -9, killed.stderr[-2000:]
    assert (tmp_path / 'epoch_2.pth').exists()
    resumed = run_tool('tools/train.py', tiny_config, *args, '--resume')
    assert 'resumed epoch: 2' in resumed.stdout + resumed.stderr
    runs = sorted(tmp_path.glob('*/vis_data/scalars.json'))
    assert len(runs) == 2
    second = [json.loads(line) for line in runs[1].read_text().splitlines()]
    seen = [(entry['epoch'], entry['loss']) for entry in second if 'loss' in entry]
    assert seen == losses(trained, {3, 4})
    assert same_weights(trained / 'epoch_4.pth', tmp_path / 'epoch_4.pth')


def test_workers_do_not_change_determinism(tiny_config, tmp_path):
    """Two runs with worker processes agree, and epochs differ."""
    for name in 'ab':
        run_tool(
            'tools/train.py', tiny_config, '--work-dir', tmp_path / name, '--no-validate',
            '--cfg-options', 'train_dataloader.num_workers=2', 'train_cfg.max_epochs=2',
        )  # fmt: skip
    assert losses(tmp_path / 'a') == losses(tmp_path / 'b')
    by_epoch = [[loss for _, loss in losses(tmp_path / 'a', {epoch})] for epoch in (1, 2)]
    assert by_epoch[0] != by_epoch[1]
    assert same_weights(tmp_path / 'a/epoch_2.pth', tmp_path / 'b/epoch_2.pth')


def test_scaled_learning_rate(tiny_config, tmp_path):
    run_tool(
        'tools/train.py', tiny_config, '--work-dir', tmp_path, '--auto-scale-lr', '--no-validate',
        '--cfg-options', 'train_cfg.max_epochs=2',
    )  # fmt: skip
    # Peak 1.5e-3 for a batch of 64; here batches hold 8.
    rates = [entry['lr'] for entry in scalars(tmp_path) if 'lr' in entry]
    assert max(rates) == pytest.approx(1.5e-3 / 8, rel=0.6)
    assert max(rates) <= 1.5e-3 / 8


def evaluate(config: Path, checkpoint: Path, *args) -> dict:
    out = checkpoint.parent / 'metrics.json'
    run_tool(
        'tools/test.py', config, checkpoint, '--work-dir', checkpoint.parent / 'test',
        '--out', out, *args,
    )  # fmt: skip
    return json.loads(out.read_text())


def test_evaluation_repeats_the_validation_of_training(trained, tiny_config):
    metrics = evaluate(tiny_config, trained / 'epoch_4.pth')
    last = [entry for entry in scalars(trained) if 'reid/mAP' in entry][-1]
    assert metrics['reid/mAP'] == pytest.approx(last['reid/mAP'], abs=1e-4)


def test_options_of_evaluation(trained, tiny_config, tmp_path):
    metrics = evaluate(
        tiny_config, trained / 'epoch_4.pth', '--rerank', '--tta', '--show-dir', tmp_path,
        '--show-max', '2', '--query-expansion', '3',
    )  # fmt: skip
    assert {'reid/mAP', 'reid/rerank_mAP', 'reid/qe_mAP'} <= metrics.keys()
    assert len(list(tmp_path.rglob('*.png'))) >= 2


def test_features_can_be_written(trained, tiny_config, tmp_path):
    out = tmp_path / 'features.npz'
    run_tool(
        'tools/test.py', tiny_config, trained / 'epoch_4.pth', '--work-dir', tmp_path, '--out', out
    )
    with np.load(out) as features:
        assert features['query_features'].shape == (7, 24)
        assert features['gallery_features'].shape == (25, 24)
        assert features['query_paths'][0].endswith('0100_c1s1_000000_00.jpg')


@pytest.mark.parametrize('script', ['train', 'test'])
def test_two_processes(script, trained, tiny_config, tmp_path):
    """Two gloo processes train, and evaluate with the figures of one."""
    args = [tiny_config, '--launcher', 'pytorch', '--work-dir', tmp_path]
    if script == 'train':
        args += ['--cfg-options', 'train_cfg.max_epochs=2', 'train_dataloader.batch_size=4',
                 'train_dataloader.sampler.num_identities=2']  # fmt: skip
    else:
        args[1:1] = [trained / 'epoch_4.pth', '--out', tmp_path / 'metrics.json']
    run_tool(
        '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
        f'tools/{script}.py', *args,
    )  # fmt: skip
    if script == 'train':
        maps = [entry['reid/mAP'] for entry in scalars(tmp_path) if 'reid/mAP' in entry]
        assert len(maps) == 1
        assert load_checkpoint_file(tmp_path / 'epoch_2.pth')['meta']['epoch'] == 2
    else:
        metrics = json.loads((tmp_path / 'metrics.json').read_text())
        single = evaluate(tiny_config, trained / 'epoch_4.pth')
        assert metrics == pytest.approx(single, abs=1e-4)


def error_of(*args) -> str:
    """The message of a tool that must fail without a traceback."""
    result = run_tool(*args, check=False)
    assert result.returncode == 2, result.stderr[-3000:]
    assert 'Traceback' not in result.stderr, result.stderr[-3000:]
    return next(line for line in result.stderr.splitlines() if line.startswith('error:'))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['train_dataloader.dataset.data_root=/nowhere'], "'/nowhere'"),
        (['train_dataloder.batch_size=4'], "did you mean 'train_dataloader'"),
        (['model.backbon.arch=deit-tiny'], "model has no 'backbon'; did you mean 'backbone'"),
        (['model.head.type=BNNekHead'], 'BNNekHead is not in the vitdown::model registry'),
        (['model.head.num_clases=3'], "unexpected keyword argument 'num_clases'"),
        (['train_dataloader.dataset.subset=training'], "got 'training'"),
        (['model.head.num_classes=3'], 'set model.head.num_classes=6'),
        (['train_dataloader.sampler.num_identities=50'], 'the dataset has 6'),
        (['train_dataloader.batch_size=6'], '4 identities x 2 images = 8'),
        (['model.backbone.patch_size=64'], 'smaller than patch_size 64'),
        (['model.head.in_channels=30'], 'set model.head.in_channels=24'),
        (['param_scheduler.warmup_epochs=9'], 'warmup_epochs=9 must be below the 4 epochs'),
    ],
)
def test_mistakes_in_the_config_get_one_message(tiny_config, tmp_path, options, message):
    args = ('tools/train.py', tiny_config, '--work-dir', tmp_path, '--cfg-options', *options)
    assert message in error_of(*args)


def test_mixed_precision_without_a_gpu_is_refused(tiny_config, tmp_path):
    if torch.cuda.is_available():
        run_tool('tools/train.py', tiny_config, '--work-dir', tmp_path, '--amp')
    else:
        message = error_of('tools/train.py', tiny_config, '--work-dir', tmp_path, '--amp')
        assert '--amp needs a GPU' in message


def test_corrupt_image_is_named(market_root, tiny_config, tmp_path):
    root = tmp_path / 'market1501'
    shutil.copytree(market_root, root)
    victims = sorted((root / 'bounding_box_train').glob('000[12]_*'))
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:200])
    args = ['tools/train.py', tiny_config, '--work-dir', tmp_path / 'w', '--no-validate',
            '--cfg-options', f'train_dataloader.dataset.data_root={root}',
            'train_cfg.max_epochs=2']  # fmt: skip
    for workers in (0, 1):
        message = error_of(*args, f'train_dataloader.num_workers={workers}')
        assert any(victim.name in message for victim in victims)
        assert "corrupt='skip'" in message
    result = run_tool(*args, 'train_dataloader.dataset.corrupt=skip')
    assert victims[0].name in result.stdout + result.stderr


def test_mistakes_in_the_arguments(tiny_config, tmp_path):
    (tmp_path / 'file').touch()
    for args, message in (
        (['--cfg-options', 'foo'], "takes KEY=VALUE, got 'foo'"),
        (['--work-dir', tmp_path / 'file'], 'file is a file; name a folder'),
        (['--launcher', 'pytorch'], 'use tools/dist_train.sh'),
    ):
        result = run_tool('tools/train.py', tiny_config, *args, check=False)
        assert result.returncode == 2
        assert 'Traceback' not in result.stderr
        assert message in result.stderr


def test_missing_and_broken_config(tmp_path):
    assert 'Config nowhere.py does not exist' in error_of('tools/train.py', 'nowhere.py')
    broken = tmp_path / 'broken.py'
    broken.write_text('model = dict(\n')
    assert 'cannot be read' in error_of('tools/train.py', broken)


def test_wrong_checkpoints(trained, tiny_config, tmp_path):
    test = ('tools/test.py', tiny_config)
    where = ('--work-dir', tmp_path)
    assert 'does not exist' in error_of(*test, 'nothing.pth', *where)
    torn = tmp_path / 'torn.pth'
    torn.write_bytes((trained / 'epoch_4.pth').read_bytes()[:1000])
    assert 'is damaged' in error_of(*test, torn, *where)
    other = tmp_path / 'other.pth'
    torch.save({'state_dict': {'conv.weight': torch.zeros(3)}}, other)
    message = error_of(*test, other, *where)
    assert 'does not fit ReIdentifier' in message
    assert 'conv.weight' in message


def test_classifier_of_another_dataset_can_be_left_out(trained, tiny_config, tmp_path):
    args = ('tools/test.py', tiny_config, trained / 'epoch_4.pth', '--work-dir', tmp_path)
    options = ['--cfg-options', 'model.head.num_classes=11']
    assert 'skip_mismatched' in error_of(*args, *options)
    result = run_tool(*args, *options, "default_hooks.checkpoint.skip_mismatched=['classifier']")
    assert re.search(r'Not loaded, .*head\.bnneck\.classifier\.weight', result.stdout)


def test_launch_scripts_say_how_to_call_them():
    import subprocess

    for script in ('dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'):
        result = subprocess.run(
            ['bash', str(ROOT / 'tools' / script)], capture_output=True, text=True
        )
        assert result.returncode == 2
        assert 'usage:' in result.stderr


def test_dist_train_script(tiny_config, tmp_path):
    import os
    import subprocess

    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PORT': '29711'}
    env['PATH'] = f'{Path(sys.executable).parent}:{env["PATH"]}'
    subprocess.run(
        ['bash', str(ROOT / 'tools/dist_train.sh'), str(tiny_config), '2', '--no-validate',
         '--work-dir', str(tmp_path), '--cfg-options', 'train_cfg.max_epochs=2',
         'train_dataloader.batch_size=4', 'train_dataloader.sampler.num_identities=2'],
        env=env, check=True, capture_output=True, timeout=600,
    )  # fmt: skip
    assert (tmp_path / 'epoch_2.pth').exists()
