"""From a trained checkpoint to a pruned one that is tested, as a user runs the tools."""

import json
import runpy

import numpy as np
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


def call_tool(name, *args):
    """Run a tool within this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('sys.argv', [name, *map(str, args)])
        runpy.run_path(str(ROOT / f'tools/pruning/{name}.py'))['main']()


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
        '--points', 2, '--mlp-points', 2, '--repeats', 3, '--passes', 1, '--max-spread', 100,
        '--max-negative', 1, '--device', 'cpu',
    )  # fmt: skip
    return path


@pytest.fixture(scope='module')
def steady_table(tmp_path_factory, table):
    """The table's points with times by a formula, so that every run goes the same way."""
    axes = LatencyTable.load(table).axes
    emb, heads, qk, v, mlp = np.meshgrid(*axes.values(), indexing='ij')
    seconds = 1e-6 * (100 + emb * (heads * (2 * qk + 2 * v) + 2 * mlp))
    path = tmp_path_factory.mktemp('steady') / 'table.json'
    LatencyTable(axes, seconds, dict(num_tokens=9)).save(path)
    return path


@pytest.fixture(scope='module')
def pruned(tmp_path_factory, tiny_config, checkpoint, steady_table):
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
        checkpoint, '--target-latency', 0.8, 0.6, '--latency-table', steady_table,
        '--work-dir', work_dir,
        '--interval', 3, '--prune-per-event', 96, '--group-sizes', *GROUPS,
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


def test_pruned_model_is_fine_tuned_as_the_config_says(pruned, tiny_config):
    """The constant rate and the endless training belong to pruning alone."""
    cfg, own = (load_config(str(path)) for path in (pruned / 'pruned_0.6.py', tiny_config))
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'val_cfg', 'val_dataloader'):
        assert cfg[key] == own[key], key
    assert not cfg.custom_hooks


def test_dense_model_gets_another_recipe(pruned, tiny_config, tmp_path):
    recipe = tmp_path / 'recipe.py'
    recipe.write_text(
        f"_base_ = '{tiny_config}'\n"
        'model = dict(backbone=dict(drop_path_rate=0.0))\n'
        'train_cfg = dict(max_epochs=7)\n'
    )
    out = tmp_path / 'small.pth'
    source = pruned / 'pruned_0.6.pth'
    options = ['--cfg-options', 'model.backbone.drop_path_rate=0.3']
    args = ['export_pruned', source.with_suffix('.py'), source, out, '--recipe', recipe, *options]
    call_tool(*args)
    cfg = load_config(str(out.with_suffix('.py')))
    assert (cfg.model.backbone.drop_path_rate, cfg.train_cfg.max_epochs) == (0.0, 7)
    assert cfg.load_from == str(out)
    before, after = (load_checkpoint_file(path)['state_dict'] for path in (source, out))
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize('as_recipe', [False, True])
def test_a_config_that_may_hold_a_key_is_not_written(pruned, tiny_config, tmp_path, as_recipe):
    config, out = tmp_path / 'secret.py', tmp_path / 'small.pth'
    secret = dict(type='ConvUnlearnable', num_classes=6, key_file='correct-horse-battery-7261')
    config.write_text(f"_base_ = '{tiny_config}'\ntransform = {secret}\n")
    last = max(pruned.glob('epoch_*.pth'), key=lambda p: int(p.stem.split('_')[1]))
    args = [tiny_config, last, out, '--recipe', config] if as_recipe else [config, last, out]
    with pytest.raises(ValueError, match='Cannot read the key file'):
        call_tool('export_pruned', *args)
    assert list(tmp_path.iterdir()) == [config]


@pytest.mark.parametrize('own_hook', [False, True])
@pytest.mark.parametrize(('key', 'limit'), [('max_epochs', 1000), ('max_iters', 100_000)])
def test_pruning_keeps_its_own_rate_and_counts_as_the_config(
    tiny_config, checkpoint, tmp_path, own_hook, key, limit
):
    path = tmp_path / 'config.py'
    hook = "dict(type='PruningHook', cost='macs', interval=7)" if own_hook else ''
    path.write_text(
        f"_base_ = '{tiny_config}'\n"
        f'custom_hooks = [{hook}]\n'
        f'train_cfg = dict(_delete_=True, by_epoch={key == "max_epochs"}, {key}=5)\n'
    )
    tool = runpy.run_path(str(ROOT / 'tools/pruning/prune.py'))
    cfg = load_config(str(path))
    rate = cfg.optim_wrapper.optimizer.lr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('sys.argv', ['prune', str(path), str(checkpoint), '--target-macs', '0.5'])
        tool['apply_args'](cfg, tool['parse_args']())
    assert cfg.train_cfg == {'by_epoch': key == 'max_epochs', key: limit}
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(rate if own_hook else 0.1 * rate)
    assert cfg.custom_hooks[0].recipe.train_cfg[key] == 5
    assert cfg.custom_hooks[0].get('interval') == (7 if own_hook else None)


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


def test_checkpoints_are_exported_as_the_hook_of_their_config_says(
    pruned, tiny_config, tmp_path, capsys
):
    recipe = tmp_path / 'recipe.py'
    recipe.write_text(f"_base_ = '{tiny_config}'\ntrain_cfg = dict(max_epochs=7)\n")
    path = tmp_path / 'config.py'
    hook = dict(type='PruningHook', cost='params', ln_mode='exact', recipe=str(recipe))
    path.write_text(f"_base_ = '{tiny_config}'\ncustom_hooks = [{hook}]\n")
    last = max(pruned.glob('epoch_*.pth'), key=lambda p: int(p.stem.split('_')[1]))
    call_tool('export_pruned', path, last, tmp_path / 'small.pth')
    cfg = load_config(str(tmp_path / 'small.py'))
    assert (cfg.model.backbone.ln_mode, cfg.train_cfg.max_epochs) == ('exact', 7)
    # The cost is the checkpoint's own.
    assert '; latency by the table ' in capsys.readouterr().out
    # Zeros alone don't tell it.
    zeros = dict(state_dict=load_checkpoint_file(last)['state_dict'])
    torch.save(zeros, tmp_path / 'zeros.pth')
    call_tool('export_pruned', path, tmp_path / 'zeros.pth', tmp_path / 'small.pth')
    assert 'of the blocks' not in capsys.readouterr().out


def test_any_head_is_exported_with_the_embedding_whole(tiny_config, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(
        f"_base_ = '{tiny_config}'\n"
        "loss = dict(type='ArcFaceLoss', num_classes=8, embedding_size=24)\n"
        "model = dict(head=dict(loss_id=dict(type='MetricLearningLoss', loss=loss)))\n"
    )
    cfg = load_config(str(path))
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        for part in (*model.backbone.layers[0].ffn.layers[0][0].parameters(),):
            part[:8] = 0
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'masked.pth')
    call_tool('export_pruned', path, tmp_path / 'masked.pth', tmp_path / 'small.pth')
    arch = load_checkpoint_file(tmp_path / 'small.pth')['meta']['arch']
    assert arch['feedforward_channels'] == [40, 48]


def test_giving_up_is_a_failure(tiny_config, checkpoint, tmp_path):
    args = ['--target-macs', 0.2, '--max-epochs', 1, '--work-dir', tmp_path]
    groups = ['--group-sizes', *GROUPS]
    with pytest.raises(SystemExit, match='gave up at 100.0 % of the macs, above the target of 20'):
        call_tool('prune', tiny_config, checkpoint, *args, *groups)


@pytest.mark.parametrize(
    ('tool', 'args', 'message'),
    [
        ('prune', ['--target-macs', '1.5'], 'between 0 and 1'),
        ('prune', ['--target-latency', '0.5'], 'give a table'),
        ('prune', ['--target-macs', '0.5', '--latency-table', 'x.json'], 'is for --target-latency'),
        ('prune', ['--target-macs', '0.5', '--group-sizes', 'emb=x'], 'takes KIND=UNITS'),
        ('prune', ['--target-macs', '0.5', '--max-epochs', '0'], '--max-epochs must be at least 1'),
        ('prune', ['--target-macs', '0.5', '--max-iters', '9'], 'give --max-epochs'),
        ('export_pruned', ['{tmp}/a.pth'], 'Nothing is pruned'),
        ('export_pruned', ['{tmp}/a.onnx'], r'must be a \.pth file'),
    ],
)
def test_mistakes_get_one_message(tiny_config, checkpoint, tmp_path, tool, args, message):
    args = [arg.format(tmp=tmp_path) for arg in args]
    with pytest.raises(ValueError, match=message):
        call_tool(tool, tiny_config, checkpoint, *args, '--work-dir', tmp_path)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--points', '1'], 'at least 2 points an axis'),
        (['--repeats', '1'], 'at least 2 repeats'),
        (['--passes', '0'], 'at least 1 pass'),
        (['--threads', '0'], '--threads must be at least 1'),
        (['--max-spread', '100', '--max-negative', '-1'], 'A larger block is faster along'),
    ],
)
def test_tables_are_refused_with_one_message(tiny_config, tmp_path, args, message):
    small = ['--points', 2, '--mlp-points', 2, '--repeats', 2, '--batch-size', 1]
    out = tmp_path / 'table.json'
    with pytest.raises(ValueError, match=message):
        call_tool('measure_latency', tiny_config, '--out', out, '--device', 'cpu', *small, *args)
    assert not out.exists()
