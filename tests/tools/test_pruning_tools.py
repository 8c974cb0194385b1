"""From a trained checkpoint to a pruned one that is tested, as a user runs the tools."""

import json
import runpy

import pytest
import torch

from tests.conftest import ROOT, run_tool
from vitdown.checkpoint import load_checkpoint_file
from vitdown.engine.launch import build_runner, load_config
from vitdown.models.pruning import LatencyTable, Sizes
from vitdown.registry import MODELS

GROUPS = ['emb=4', 'head=1', 'qk=2', 'v=2', 'mlp=8']

KILL_HOOK = """
import os
import signal

from mmengine.hooks import Hook

from vitdown.registry import HOOKS


@HOOKS.register_module()
class KillHook(Hook):
    def before_train_iter(self, runner, batch_idx, **kwargs):
        if runner.epoch == 4:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory, tiny_config):
    """Checkpoint of one epoch."""
    work_dir = tmp_path_factory.mktemp('full')
    cfg = load_config(str(tiny_config), work_dir=str(work_dir))
    cfg.train_cfg.max_epochs = 2
    build_runner(cfg).train()
    return work_dir / 'epoch_2.pth'


@pytest.fixture(scope='module')
def table(tmp_path_factory, tiny_config):
    path = tmp_path_factory.mktemp('latency') / 'table.json'
    run_tool(
        'tools/pruning/measure_latency.py', tiny_config, '--out', path, '--batch-size', 4,
        '--points', 2, '--mlp-points', 2, '--repeats', 3, '--max-spread', 100, '--device', 'cpu',
    )  # fmt: skip
    return path


@pytest.fixture(scope='module')
def pruned(tmp_path_factory, tiny_config, checkpoint, table):
    """Work dir of a run to 60 % of the latency that was killed and resumed."""
    work_dir = tmp_path_factory.mktemp('pruned')
    (work_dir / 'kill_hook.py').write_text(KILL_HOOK)
    killed = work_dir / 'killed.py'
    killed.write_text(
        f"_base_ = '{tiny_config}'\n"
        "custom_imports = dict(imports=['kill_hook'])\n"
        "custom_hooks = [dict(type='KillHook')]\n"
    )
    args = [
        checkpoint, '--target-latency', 0.8, 0.6, '--latency-table', table, '--work-dir', work_dir,
        '--interval', 2, '--prune-per-event', 96, '--group-sizes', *GROUPS,
    ]  # fmt: skip
    path = {'PYTHONPATH': f'{ROOT}:{work_dir}'}
    first = run_tool('tools/pruning/prune.py', killed, *args, check=False, env=path)
    assert first.returncode == -9, first.stderr[-3000:]
    assert (work_dir / 'epoch_4.pth').exists()
    state = load_checkpoint_file(work_dir / 'epoch_4.pth')['pruning']['pruner']
    assert len(state['history']) >= 2
    run_tool('tools/pruning/prune.py', tiny_config, *args, '--resume')
    return work_dir


def test_table_is_cached_with_its_device(table):
    loaded = LatencyTable.load(table)
    assert loaded.info['device']
    assert (loaded.info['batch_size'], loaded.info['num_tokens']) == (4, 9)
    assert loaded.negative_slopes() == 0


def test_pruned_model_is_tested_by_the_config_beside_it(pruned):
    content = load_checkpoint_file(pruned / 'pruned_0.6.pth')
    assert content['meta']['cost_ratio'] <= 0.6
    assert load_checkpoint_file(pruned / 'pruned_0.8.pth')['meta']['cost_ratio'] <= 0.8
    assert 'Embedding' in (pruned / 'pruned_0.6.md').read_text()
    out = pruned / 'metrics.json'
    run_tool(
        'tools/test.py', pruned / 'pruned_0.6.py', pruned / 'pruned_0.6.pth', '--out', out,
        '--work-dir', pruned / 'test',
    )  # fmt: skip
    assert 0 < json.loads(out.read_text())['reid/mAP'] <= 100


def test_masked_checkpoint_is_exported_exactly(pruned, tiny_config):
    """The exact dense model gives the features of the masked one, and has its own config."""
    last = max(pruned.glob('epoch_*.pth'), key=lambda p: int(p.stem.split('_')[1]))
    out = pruned / 'exact.pth'
    result = run_tool(
        'tools/pruning/export_pruned.py', tiny_config, last, out, '--ln-mode', 'exact'
    )
    assert 'arch = ' in result.stdout
    masked_file = load_checkpoint_file(last)
    gates = masked_file['pruning']['pruner']['gates']
    masked = MODELS.build(load_config(str(tiny_config)).model).eval()
    masked.load_state_dict(masked_file['state_dict'])
    dense = MODELS.build(load_config(str(out.with_suffix('.py'))).model).eval()
    dense.load_state_dict(load_checkpoint_file(out)['state_dict'])
    sizes = Sizes.from_counts([int(gate.sum()) for gate in gates])
    assert sizes.emb < 24
    assert dense.backbone.embed_dims == sizes.emb
    images = torch.rand(4, 3, 32, 16)
    with torch.no_grad():
        torch.testing.assert_close(dense(images), masked(images)[:, gates[0]], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ('tool', 'args', 'message'),
    [
        ('prune', ['--target-macs', '1.5'], 'between 0 and 1'),
        ('prune', ['--target-latency', '0.5'], 'give a table'),
        ('prune', ['--target-macs', '0.5', '--latency-table', 'x.json'], 'is for --target-latency'),
        ('prune', ['--target-macs', '0.5', '--group-sizes', 'emb=x'], 'takes KIND=UNITS'),
        ('export_pruned', ['{tmp}/a.pth'], 'Nothing is pruned'),
        ('export_pruned', ['{tmp}/a.onnx'], r'must be a \.pth file'),
    ],
)
def test_mistakes_get_one_message(
    tiny_config, checkpoint, tmp_path, monkeypatch, tool, args, message
):
    args = [arg.format(tmp=tmp_path) for arg in args]
    argv = [tool, tiny_config, checkpoint, *args, '--work-dir', tmp_path]
    monkeypatch.setattr('sys.argv', [str(arg) for arg in argv])
    main = runpy.run_path(str(ROOT / f'tools/pruning/{tool}.py'))['main']
    with pytest.raises(ValueError, match=message):
        main()
