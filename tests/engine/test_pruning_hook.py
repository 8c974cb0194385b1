"""PruningHook in whole training runs: targets, exports, refusals, two processes against one."""

import json
import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper

from tests.engine.test_distributed import build_model, free_port, make_batch
from vitdown.checkpoint import load_checkpoint_file
from vitdown.engine.hooks import PruningHook, pruning_hook
from vitdown.engine.launch import build_runner, load_config
from vitdown.models.pruning import (
    GlobalPruner,
    LatencyTable,
    MultiplyAdds,
    Parameters,
    Sizes,
    ViTStructure,
    total_cost,
)
from vitdown.registry import HOOKS, MODELS

GROUPS = dict(emb=4, head=1, qk=2, v=2, mlp=8)
HOOK = dict(
    type='PruningHook',
    cost='macs',
    targets=[0.8, 0.5],
    interval=2,
    prune_per_event=6,
    rank_unit=1,
    group_sizes=GROUPS,
    cost_weight=1.0,
)


def run(tiny_config, work_dir, hooks, **options):
    cfg = load_config(str(tiny_config), work_dir=str(work_dir))
    cfg.merge_from_dict(
        {
            'custom_hooks': list(hooks),
            'train_cfg.max_epochs': 40,
            'train_cfg.val_interval': 100,
            'log_level': 'ERROR',
            **options,
        }
    )
    runner = build_runner(cfg)
    runner.train()
    return runner


@pytest.fixture(scope='module')
def pruned(tiny_config, tmp_path_factory):
    """A run to half of the multiply-adds."""
    work_dir = tmp_path_factory.mktemp('pruned')
    return run(tiny_config, work_dir, [{**HOOK, 'recipe': str(tiny_config)}]), work_dir


def hook_of(runner) -> PruningHook:
    return next(hook for hook in runner.hooks if isinstance(hook, PruningHook))


def test_run_stops_at_the_last_target(pruned):
    runner, _ = pruned
    pruner = hook_of(runner).pruner
    assert pruner.cost_ratio <= 0.5
    assert runner.epoch < 40
    assert pruner.history[-2]['cost_ratio'] > 0.5, 'pruning ends with the target'
    ratios = [1.0, *(entry['cost_ratio'] for entry in pruner.history)]
    group = 4 / 24  # the largest: channels of the embedding
    assert all(before - after < 0.1 + group for before, after in zip(ratios, ratios[1:]))
    assert ratios[-1] > 0.5 - group
    for parameter, mask in pruner.structure.weight_masks(runner.model, pruner.gates):
        assert not (parameter * ~mask).any()


def test_every_target_has_a_model_a_config_and_a_report(pruned):
    runner, work_dir = pruned
    pruner = hook_of(runner).pruner
    for target in (0.8, 0.5):
        path = work_dir / f'pruned_{target}.pth'
        content = load_checkpoint_file(path)
        reached = next(e for e in pruner.history if e['cost_ratio'] <= target)
        sizes = Sizes.from_counts(reached['kept'])
        assert content['meta']['cost_ratio'] == reached['cost_ratio']
        assert content['meta']['arch'] == {
            **sizes.arch(pruner.structure.qk_scale), 'qkv_bias': True
        }  # fmt: skip
        cfg = load_config(str(path.with_suffix('.py')))
        assert not cfg.custom_hooks
        assert cfg.load_from == str(path)
        assert cfg.train_cfg.max_epochs == 4, "the recipe's, not the 40 of pruning"
        model = MODELS.build(cfg.model)
        model.load_state_dict(content['state_dict'])
        assert ViTStructure(model).sizes == sizes
        report = path.with_suffix('.md').read_text()
        assert f'Embedding: {sizes.emb} / 24 channels' in report
        assert f'| 1 | {sizes.blocks[1][0]} / 3 |' in report
        assert path.with_suffix('.png').stat().st_size > 5000


def test_the_average_of_the_weights_is_masked(tiny_config, tmp_path):
    ema = dict(type='EMAHook', momentum=0.1)
    hook = {**HOOK, 'targets': 0.8, 'max_drop': 0.05, 'export': False}
    runner = run(tiny_config, tmp_path, [ema, hook])
    pruner = hook_of(runner).pruner
    assert pruner.num_events > 1
    saved = load_checkpoint_file(tmp_path / f'epoch_{runner.epoch}.pth')
    average, weights = saved['state_dict'], saved['ema_state_dict']
    masks = pruner.structure.weight_masks(runner.model, pruner.gates)
    names = {id(parameter): name for name, parameter in runner.model.named_parameters()}
    assert masks
    assert any(not torch.equal(average[name], weights[f'module.{name}']) for name in names.values())
    for parameter, mask in masks:
        name = names[id(parameter)]
        assert not (average[name] * ~mask).any(), name


@HOOKS.register_module()
class InterruptHook(Hook):
    """Ends a training after two epochs, as a kill would."""

    def after_train_epoch(self, runner):
        runner.train_loop.stop_training = runner.epoch == 1


def test_resumed_run_prunes_alike(pruned, tiny_config, tmp_path):
    runner, work_dir = pruned
    assert runner.epoch > 2
    interrupted = run(tiny_config, tmp_path, [HOOK, dict(type='InterruptHook')])
    assert interrupted.epoch == 2
    resumed = run(
        tiny_config, tmp_path, [HOOK], load_from=str(tmp_path / 'epoch_2.pth'), resume=True
    )
    assert hook_of(resumed).pruner.history == hook_of(runner).pruner.history
    expected = load_checkpoint_file(work_dir / 'pruned_0.5.pth')['state_dict']
    found = load_checkpoint_file(tmp_path / 'pruned_0.5.pth')['state_dict']
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            dict(cost='params', targets=0.3),
            'pruned by its macs of 9 tokens, this run counts params',
        ),
        (dict(targets=[0.8, 0.5]), 'below the target of 80 %, and .* has no model of that target'),
        (dict(targets=[0.9, 0.3]), 'below the target of 90 %'),
    ],
)
def test_pruned_checkpoints_are_not_gone_on_with_otherwise(
    pruned, tiny_config, tmp_path, change, message
):
    runner, work_dir = pruned
    start = str(work_dir / f'epoch_{runner.epoch}.pth')
    with pytest.raises(ValueError, match=message):
        run(tiny_config, tmp_path, [{**HOOK, **change}], load_from=start)
    assert not list(tmp_path.glob('pruned_*'))


def test_finished_run_is_resumed_without_harm_or_to_another_target(pruned, tiny_config, tmp_path):
    runner, work_dir = pruned
    for path in work_dir.glob('pruned_*'):
        shutil.copy(path, tmp_path)
    resume = dict(load_from=str(work_dir / f'epoch_{runner.epoch}.pth'), resume=True)
    before = hook_of(runner).pruner.history
    same = run(tiny_config, tmp_path, [HOOK], **resume)
    assert hook_of(same).pruner.history == before
    lower = run(tiny_config, tmp_path, [{**HOOK, 'targets': 0.3}], **resume)
    history = hook_of(lower).pruner.history
    assert history[: len(before)] == before
    assert history[-1]['cost_ratio'] <= 0.3
    assert (tmp_path / 'pruned_0.3.pth').exists()


def test_parameters_are_counted(tiny_config, tmp_path):
    hook = {**HOOK, 'cost': 'params', 'targets': 0.8, 'export': False}
    pruner = hook_of(run(tiny_config, tmp_path, [hook])).pruner
    shares = [
        total_cost(cost, pruner.sizes) / total_cost(cost, pruner.structure.sizes)
        for cost in (Parameters(), MultiplyAdds(9))
    ]
    assert pruner.cost_ratio == shares[0] <= 0.8
    assert shares[0] != pytest.approx(shares[1], rel=1e-3)


@HOOKS.register_module()
class ModeHook(Hook):
    """Notes whether the backbone of a step is in training mode."""

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append(runner.model.backbone.training)


@pytest.mark.parametrize('stop', [True, False])
def test_training_ends_with_pruning_or_goes_on(tiny_config, tmp_path, monkeypatch, stop):
    """Scores are of weights that are zero where they were pruned, behind the first event too."""
    accumulate, left = GlobalPruner.accumulate, []

    def check(pruner):
        left.extend(bool((parameter * ~mask).any()) for parameter, mask in pruner._masks)
        accumulate(pruner)

    monkeypatch.setattr(GlobalPruner, 'accumulate', check)
    hook = {**HOOK, 'targets': 0.7, 'switch_to_eval': True, 'export': False, 'stop': stop}
    runner = run(
        tiny_config, tmp_path, [hook, dict(type='ModeHook')], **{'train_cfg.max_epochs': 12}
    )
    pruner = hook_of(runner).pruner
    assert [entry['cost_ratio'] <= 0.7 for entry in pruner.history[-2:]] == [False, True]
    assert (runner.epoch == 12) == (not stop)
    assert left
    assert not any(left)
    (seen,) = (h.seen for h in runner.hooks if isinstance(h, ModeHook))
    assert seen == [number < 3 for number in range(len(seen))], 'the event follows the third step'
    assert len(seen) > 3
    masks = pruner.structure.weight_masks(runner.model, pruner.gates)
    assert not any((parameter * ~mask).any() for parameter, mask in masks)


def test_latency_of_a_table_and_evaluation_mode(tiny_config, tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr(
        pruning_hook,
        'print_log',
        lambda text, level=logging.INFO, **_: messages.append((level, text)),
    )
    axes = dict(emb=[6, 24], heads=[1, 3], qk=[1, 8], v=[1, 8], mlp=[1, 48])
    grid = np.stack(np.meshgrid(*axes.values(), indexing='ij'), axis=-1)
    seconds = 1e-9 * MultiplyAdds(9)(grid.reshape(-1, 5)).reshape(grid.shape[:-1])
    info = dict(num_tokens=9, device='abacus', dtype='float64')
    LatencyTable(axes, seconds, info).save(tmp_path / 'table.json')
    hook = {**HOOK, 'cost': 'latency', 'latency_table': str(tmp_path / 'table.json'),
            'targets': 0.9, 'switch_to_eval': True, 'export': False}  # fmt: skip
    runner = run(tiny_config, tmp_path / 'run', [hook])
    assert hook_of(runner).pruner.cost_ratio <= 0.9
    (warning,) = (text for level, text in messages if level == logging.WARNING)
    assert 'measured on abacus, float64, this run is on ' in warning
    assert 'float32; ' in warning
    assert not runner.model.backbone.training
    assert not (tmp_path / 'run' / 'pruned_0.9.pth').exists()
    content = json.loads((tmp_path / 'table.json').read_text())
    content['info']['num_tokens'] = 12
    (tmp_path / 'table.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match='measured with 12 tokens, the model has 9'):
        run(tiny_config, tmp_path / 'run2', [hook])


@HOOKS.register_module()
class LossNamesHook(Hook):
    """Notes which losses a step has."""

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append('loss_kd' in outputs)


def test_distillation_begins_with_the_first_event(tiny_config, tiny_checkpoint, tmp_path):
    loss = dict(type='KDLoss', temperature=4.0, alpha=0.5)
    tap = 'head.bnneck.classifier'
    distillation = dict(
        type='DistillationHook', losses=dict(loss_kd=loss), teacher=str(tiny_config),
        teacher_checkpoint=str(tiny_checkpoint),
        taps=dict(student_logits=tap, teacher_logits=tap),
    )  # fmt: skip
    hook = {**HOOK, 'losses_from_first_event': ['loss_kd'], 'export': False}
    epochs = {'train_cfg.max_epochs': 2}
    runner = run(tiny_config, tmp_path, [distillation, hook, dict(type='LossNamesHook')], **epochs)
    (seen,) = (h.seen for h in runner.hooks if isinstance(h, LossNamesHook))
    assert seen == [number > 2 for number in range(len(seen))], 'the event follows the third step'
    assert any(seen)
    with pytest.raises(ValueError, match="has a loss 'loss_kd'; there are none"):
        run(tiny_config, tmp_path / 'none', [hook], **epochs)


def test_random_choice_follows_the_seed_of_the_run(tiny_config, tmp_path):
    def gates(seed):
        hook = {**HOOK, 'saliency': 'random', 'targets': 0.8, 'cost_weight': 0, 'export': False}
        runner = run(tiny_config, tmp_path, [hook], **{'randomness.seed': seed})
        return torch.cat(hook_of(runner).pruner.gates)

    assert not torch.equal(gates(0), gates(1))


def test_target_below_the_smallest_model_is_refused(tiny_config, tmp_path):
    hook = {**HOOK, 'targets': 0.4, 'structures': ['head']}
    with pytest.raises(ValueError, match='cannot be reached: with one group left in every layer'):
        run(tiny_config, tmp_path, [hook])


def test_a_checkpoint_with_a_pruned_embedding_is_gone_on_with_as_such(
    pruned, tiny_config, tmp_path
):
    _, work_dir = pruned
    last = (work_dir / 'last_checkpoint').read_text()
    hook = {**HOOK, 'targets': 0.3, 'structures': ['head', 'mlp']}
    with pytest.raises(ValueError, match="pruned already: keep 'emb' in structures"):
        run(tiny_config, tmp_path, [hook], load_from=last)


def test_options_of_the_pruner_are_handed_on(tiny_config, tmp_path):
    options = dict(cost_weight=0.25, normalize_cost=False, momentum=0.5, count_pruned=False)
    hook = {**HOOK, **options, 'targets': 0.9, 'export': False}
    pruner = hook_of(run(tiny_config, tmp_path, [hook])).pruner
    assert {name: getattr(pruner, name) for name in options if name != 'normalize_cost'} == {
        name: value for name, value in options.items() if name != 'normalize_cost'
    }
    assert pruner.full_cost > 1, 'counted in multiply-adds, not as a share'


def test_what_has_no_dense_model_is_refused_before_training(tiny_config, tmp_path):
    with pytest.raises(ValueError, match='recipe must be a config with a model'):
        run(tiny_config, tmp_path, [{**HOOK, 'recipe': dict(optim_wrapper=dict())}])
    sizes = {'model.backbone.layer_cfgs': dict(feedforward_channels=40)}
    with pytest.raises(ValueError, match='The dense model of this config cannot take the weights'):
        run(tiny_config, tmp_path, [HOOK], **sizes)
    hook = {**HOOK, 'structures': ['mlp'], 'targets': 0.9}
    with pytest.raises(ValueError, match='JPMHead has a copy of the last block'):
        run(tiny_config, tmp_path, [hook], **{'model.head.type': 'JPMHead'})
    norm = {'model.backbone.patch_cfg': dict(norm_cfg=dict(type='LN'))}
    with pytest.raises(ValueError, match='does not reach the norm of the patch embedding'):
        run(tiny_config, tmp_path, [{**HOOK, 'ln_mode': 'exact'}], **norm)


def test_a_recipe_that_may_hold_a_key_is_refused_before_training(tiny_config, tmp_path):
    """It is written beside the dense models."""
    recipe = tmp_path / 'recipe.py'
    secret = dict(type='ConvUnlearnable', num_classes=6, key_file='correct-horse-battery-7261')
    recipe.write_text(f"_base_ = '{tiny_config}'\ntransform = {secret}\n")
    with pytest.raises(ValueError, match='Cannot read the key file'):
        run(tiny_config, tmp_path / 'work', [{**HOOK, 'recipe': str(recipe)}])
    assert not list((tmp_path / 'work').glob('pruned_*'))


def test_other_backbones_are_refused(tiny_config, tmp_path):
    backbone = dict(_delete_=True, type='mmpretrain.ResNet', depth=18)
    cfg = load_config(str(tiny_config), {'model.backbone': backbone}, str(tmp_path))
    cfg.model.head.in_channels = 512
    cfg.custom_hooks, cfg.log_level = [HOOK], 'ERROR'
    cfg.model.backbone.pop('_delete_', None)
    with pytest.raises(ValueError, match='ResNet is not one of .*, NViT'):
        build_runner(cfg).train()


def test_target_out_of_reach_is_reported(tiny_config, tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, message, *args: messages.append(message))
    run(tiny_config, tmp_path, [{**HOOK, 'targets': 0.2}], **{'train_cfg.max_epochs': 2})
    assert any('above the target of 20 %' in str(message) for message in messages)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(targets=1.5), 'targets must lie between 0 and 1'),
        (dict(targets=[0.3, 0.5]), 'targets must fall'),
        (dict(targets=[]), 'targets must lie between'),
        (dict(cost='flops'), "got 'flops'"),
        (dict(cost='latency'), 'give a table'),
        (dict(latency_table='x.json'), 'give a table'),
        (dict(targets='0.5'), 'targets must lie between 0 and 1'),
        (dict(targets=None), 'targets must lie between 0 and 1'),
        (dict(interval=0), 'interval must be an integer of at least 1, got 0'),
        (dict(interval=2.5), 'interval must be an integer'),
        (dict(max_drop=0), 'max_drop must lie between'),
        (dict(max_drop='a'), "max_drop must lie between 0 and 1, got 'a'"),
        (dict(ln_mode='wide'), "got 'wide'"),
    ],
)
def test_mistakes_get_one_message(options, message):
    with pytest.raises(ValueError, match=message):
        PruningHook(**{'cost': 'macs', **options})


@pytest.mark.parametrize(
    ('max_drop', 'bounds'),
    [(0.5, [0.8, 0.5]), (0.1, [0.9, 0.65]), (None, [0, 0])],
)
def test_an_event_stops_at_the_next_target(max_drop, bounds):
    hook = PruningHook(cost='macs', targets=[0.8, 0.5], max_drop=max_drop)
    assert [hook._next_bound(ratio) for ratio in (1.0, 0.75)] == pytest.approx(bounds)
    assert 0 <= hook._next_bound(0.4) < 0.4, 'below all targets'


def test_unknown_arguments_are_refused(tiny_config, tmp_path):
    with pytest.raises(TypeError, match='momentun'):
        run(tiny_config, tmp_path, [{**HOOK, 'momentun': 0.5}])


def prune_steps(model, wrapped, images, samples, events=4) -> GlobalPruner:
    pruner = GlobalPruner(
        model, MultiplyAdds(9), 0.0, prune_per_event=4, rank_unit=1, group_sizes=GROUPS
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.register_step_post_hook(lambda *args: (pruner.apply_masks(), pruner.accumulate()))
    for _ in range(events):
        for _ in range(2):
            optimizer.zero_grad()
            loss, _ = model.parse_losses(wrapped(images, samples, mode='loss'))
            loss.backward()
            optimizer.step()
        pruner.event()
    return pruner


def run_rank(rank: int, port: int, folder: str) -> None:
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    model = build_model()
    images, samples = make_batch()
    half = slice(4 * rank, 4 * rank + 4)
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    pruner = prune_steps(model, wrapped, images[half], samples[half])
    # Ranks that would prune differently: random scores of different seeds
    disagreeing = GlobalPruner(
        build_model(), MultiplyAdds(9), 0.0, prune_per_event=40, rank_unit=1, group_sizes=GROUPS,
        saliency='random', seed=rank,
    )  # fmt: skip
    for _ in range(2):
        disagreeing.event()
    states = dict(agreed=pruner.state_dict(), decided=disagreeing.state_dict())
    torch.save(states, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


def test_two_processes_prune_as_one_and_alike(tmp_path):
    mp.spawn(run_rank, args=(free_port(), str(tmp_path)), nprocs=2)
    model = build_model()
    expected = prune_steps(model, model, *make_batch())
    assert expected.cost_ratio < 0.95
    states = [torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in range(2)]
    for state in states:
        assert all(torch.equal(a, b) for a, b in zip(state['agreed']['gates'], expected.gates))
    first, second = (state['decided'] for state in states)
    assert not all(gate.all() for gate in first['gates'])
    assert all(torch.equal(a, b) for a, b in zip(first['gates'], second['gates']))


def test_sparse_weights_stay_sparse(tiny_config, tmp_path):
    arch = dict(embed_dims=64, num_layers=2, num_heads=2, feedforward_channels=64)
    runner = run(
        tiny_config,
        tmp_path,
        [dict(type='SemiStructuredSparsityHook')],
        **{'train_cfg.max_epochs': 2, 'model.backbone.arch': arch, 'model.head.in_channels': 64},
    )
    for layer in runner.model.backbone.layers:
        for linear in (layer.attn.qkv, layer.attn.proj, layer.ffn.layers[0][0]):
            assert ((linear.weight.unflatten(1, (-1, 4)) != 0).sum(dim=-1) == 2).all()


def test_gradients_that_stay_scaled_are_refused(pruned):
    runner, _ = pruned
    wrapper = AmpOptimWrapper.__new__(AmpOptimWrapper)  # one with a scaler needs a GPU
    wrapper.optimizer = torch.optim.AdamW(runner.model.parameters(), fused=True)
    with pytest.raises(ValueError, match='set fused=False in the optimizer'):
        pruning_hook._plain_optimizer(SimpleNamespace(optim_wrapper=wrapper, model=runner.model))
