import signal
import subprocess
import sys
import time

import pytest
import torch
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
