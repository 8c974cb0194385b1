"""Training hooks in two gloo processes, against one process."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vitdown.engine.hooks import (
    NKDHook,
    SMMixHook,
    StopDistillHook,
    TokenConsistencyHook,
    USKDHook,
    ViTKDHook,
)

from .classification import build, classifier, cnn, train, vit_backbone, watch

WRAPPER = dict(
    type='MMDistributedDataParallel',
    device_ids=None,
    broadcast_buffers=False,
    find_unused_parameters=False,
)


def make_hooks(names: list[str]) -> list:
    make = {
        'nkd': lambda: NKDHook(build(cnn(6), seed=1)),
        'uskd': lambda: USKDHook(alpha=0.0, beta=0.0, mu=1.0),
        'smmix': SMMixHook,
        'stop': lambda: StopDistillHook(1),
        'vitkd': lambda: ViTKDHook(build(classifier(), seed=1), teacher_dims=24),
        'consistency': lambda: TokenConsistencyHook(r_max=5),
    }
    return [make[name]() for name in names]


def run(names: list[str], folder: str, batch_size: int, epochs: int, **kwargs) -> dict:
    fusion = dict(type='MCTF', r=6, min_tokens=2) if 'consistency' in names else None
    model = build(classifier(vit_backbone(token_fusion=fusion)))
    steps = watch(model)
    hooks = make_hooks(names)
    kept, drawn = {}, []
    override = model.backbone.override_fusion

    def note(r):
        drawn.append(r)
        return override(r)

    model.backbone.override_fusion = note
    for hook in hooks:
        if isinstance(hook, (NKDHook, TokenConsistencyHook, StopDistillHook)):
            continue
        after = hook.after_train

        def keep(runner, hook=hook, after=after):
            kept.update(hook.attached.module.state_dict(prefix=f'{hook.attached.name}.'))
            after(runner)

        hook.after_train = keep
    train(model, folder, hooks, epochs=epochs, batch_size=batch_size, **kwargs)
    weights = {**model.state_dict(), **kept}
    weights = {k: v.clone() for k, v in weights.items()}
    return dict(weights=weights, steps=steps, drawn=drawn)


def run_rank(rank: int, port: int, folder, names: list[str], options: dict) -> None:
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE='2')
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    cfg = dict(model_wrapper_cfg=WRAPPER)
    # A seed of its own for each process: what they share, they must have agreed on.
    seed = options.pop('seed', 7) + rank
    result = run(names, folder / 'two', launcher='pytorch', cfg=cfg, seed=seed, **options)
    torch.save(result, folder / f'{rank}.pth')
    dist.barrier()
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def run_two(folder, names: list[str], **options) -> list[dict]:
    mp.spawn(run_rank, args=(free_port(), folder, names, options), nprocs=2)
    return [torch.load(folder / f'{rank}.pth', weights_only=True) for rank in range(2)]


def test_two_halves_learn_what_the_whole_batch_teaches(tmp_path):
    """NKD, and USKD's weak classifier: the mean of the processes' gradients is the batch's."""
    names = ['nkd', 'uskd']
    first, second = run_two(tmp_path, names, batch_size=6, epochs=1)
    whole = run(names, tmp_path / 'one', batch_size=12, epochs=1)
    assert len(first['steps']) == len(whole['steps']) == 1
    for name in whole['steps'][0]:
        mean = (first['steps'][0][name] + second['steps'][0][name]) / 2
        assert mean == pytest.approx(whole['steps'][0][name], rel=1e-4)
    assert any(key.startswith('loss_uskd.') for key in whole['weights'])
    for key, value in whole['weights'].items():
        # Adam divides by the gradient's size: near 0 its sign decides.
        close = torch.isclose(first['weights'][key], value, rtol=1e-3, atol=1e-4)
        assert close.float().mean() > 0.97, key


def test_processes_mix_alike_and_stay_equal(tmp_path):
    """Also where two hooks with parameters stop: every parameter has a gradient in every step."""
    first, second = run_two(
        tmp_path,
        ['smmix', 'uskd', 'vitkd', 'stop'],
        batch_size=2,
        epochs=3,
        seed=3,
        optim_wrapper=dict(accumulative_counts=2),
    )
    kinds = [['loss_con' in step for step in result['steps']] for result in (first, second)]
    assert kinds[0] == kinds[1]
    assert len(set(kinds[0])) == 2
    assert first['steps'] != second['steps']
    brought = {key.split('.')[0] for key in first['weights']}
    assert brought >= {'smmix_token_head', 'loss_uskd', 'loss_vitkd'}
    stopped = ['loss_stopped' in step for step in first['steps']]
    assert stopped == ['loss_uskd' not in step for step in first['steps']]
    assert len(set(stopped)) == 2
    for key, value in first['weights'].items():
        assert torch.equal(second['weights'][key], value), key


def test_processes_draw_the_same_teacher(tmp_path):
    first, second = run_two(tmp_path, ['consistency'], batch_size=1, epochs=1)
    assert first['drawn'] == second['drawn']
    assert len(first['drawn']) == 6
    assert len(set(first['drawn'])) > 1
