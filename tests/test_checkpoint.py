import signal
import subprocess
import sys
import time

import pytest
import torch
from mmengine.optim.scheduler import OneCycleParamScheduler
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from vitdown.checkpoint import (
    CheckpointError,
    check_fit,
    drop_unloadable,
    find_resumable_checkpoint,
    load_checkpoint_file,
    write_atomically,
)

# Saves checkpoint after checkpoint through the backend that SafeCheckpointHook uses.
WRITER = """
import sys, torch
from mmengine.runner import save_checkpoint
import vitdown.engine.hooks
print('ready', flush=True)
for i in range(10**6):
    weights = {'state_dict': {'w': torch.full((500_000,), float(i))}}
    save_checkpoint(weights, sys.argv[1], backend_args=dict(backend='atomic_local'))
"""


def test_a_kill_at_any_moment_leaves_a_loadable_checkpoint(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    for delay in (0.0, 0.013, 0.031, 0.057):
        process = subprocess.Popen(
            [sys.executable, '-c', WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert any(line.strip() == 'ready' for line in process.stdout)
            while not path.exists():
                assert process.poll() is None
            moment = time.perf_counter() + delay
            while time.perf_counter() < moment:
                pass
        finally:
            process.kill()
            process.wait()
        assert process.returncode == -signal.SIGKILL
        weight = load_checkpoint_file(path)['state_dict']['w']
        assert weight.unique().numel() == 1
        assert find_resumable_checkpoint(tmp_path) == str(path)


def test_failed_writes_leave_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / 'file'
    write_atomically(b'old', path)
    with pytest.raises(TypeError):
        write_atomically('not bytes', path)
    assert path.read_bytes() == b'old'
    assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_resumes_from_the_newest_file_that_loads(tmp_path):
    assert find_resumable_checkpoint(tmp_path) is None
    for epoch in (2, 9, 10):
        torch.save({'state_dict': {}}, tmp_path / f'epoch_{epoch}.pth')
    # A kill can leave the pointer empty, or pointing to a file removed since.
    for pointer in ('', str(tmp_path / 'epoch_11.pth')):
        (tmp_path / 'last_checkpoint').write_text(pointer)
        assert find_resumable_checkpoint(tmp_path) == str(tmp_path / 'epoch_10.pth')
    (tmp_path / 'epoch_10.pth').write_bytes(b'torn')
    assert find_resumable_checkpoint(tmp_path) == str(tmp_path / 'epoch_9.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    assert find_resumable_checkpoint(tmp_path) == str(tmp_path / 'epoch_2.pth')


def test_a_run_whose_checkpoints_do_not_load_is_not_begun_anew(tmp_path):
    for epoch in (1, 2):
        (tmp_path / f'epoch_{epoch}.pth').write_bytes(b'torn')
    with pytest.raises(CheckpointError, match='epoch_2.pth is damaged .* to train anew, move'):
        find_resumable_checkpoint(tmp_path)


@pytest.mark.parametrize(
    'settings',
    [
        dict(type='OneCycleLR', eta_max=0.1, total_steps=8),
        dict(type='OneCycleLR', eta_max=0.1, total_steps=8, anneal_strategy='linear'),
        dict(type='ReduceOnPlateauLR', monitor='loss'),
        dict(type='CosineRestartLR', periods=[2, 2], restart_weights=[1, 1], eta_min=0),
        dict(type='CosineAnnealingLR', T_max=8),
        dict(type='MultiStepLR', milestones=[2]),
        dict(type='StepLR', step_size=2),
        dict(type='ExponentialLR', gamma=0.9),
        dict(type='ConstantLR'),
        dict(type='LinearLR'),
        dict(type='PolyLR'),
    ],
    ids=lambda settings: '-'.join(str(v) for v in settings.values() if isinstance(v, str)),
)
def test_the_state_of_every_scheduler_loads(tmp_path, settings):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    scheduler = PARAM_SCHEDULERS.build(dict(settings, optimizer=optimizer))
    torch.save({'param_schedulers': [scheduler.state_dict()]}, tmp_path / 'epoch_1.pth')
    (found,) = load_checkpoint_file(tmp_path / 'epoch_1.pth')['param_schedulers']
    assert found == scheduler.state_dict()


def test_stand_ins_give_no_other_attributes(tmp_path):
    class Reference:
        def __init__(self, name):
            self.name = name

        def __reduce__(self):
            return getattr, (OneCycleParamScheduler, self.name)

    for name in ('__init__', 'load_state_dict', '__subclasses__'):
        torch.save({'x': Reference(name)}, tmp_path / 'file.pth')
        with pytest.raises(CheckpointError, match='holds Python objects besides weights'):
            load_checkpoint_file(tmp_path / 'file.pth')


class Model(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.backbone = nn.Linear(3, 4)
        self.classifier = nn.Linear(4, num_classes)


def test_misfits_are_listed():
    other = Model(5).state_dict()
    other['neck.weight'] = torch.zeros(1)
    del other['backbone.bias']
    with pytest.raises(CheckpointError) as error:
        check_fit(Model(7), other, 'a.pth')
    message = str(error.value)
    assert 'a.pth does not fit Model' in message
    assert 'missing: backbone.bias' in message
    assert 'unexpected: neck.weight' in message
    assert 'classifier.weight (5, 4) instead of (7, 4)' in message


def test_mismatched_weights_can_be_left_out_on_request():
    weights = Model(5).state_dict()
    assert drop_unloadable(Model(5), dict(weights), ['classifier']) == []
    assert drop_unloadable(Model(7), weights, ['classifier']) == [
        'classifier.weight',
        'classifier.bias',
    ]
    check_fit(Model(7), weights, ignore=['classifier'])
