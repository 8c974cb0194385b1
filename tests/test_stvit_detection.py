"""What benchmarks/stvit_detection.py does with runs that are new, done, interrupted or others."""

import json
import subprocess

import pytest
import torch

from benchmarks import stvit_detection
from vitdown.engine.launch import ConfigError


@pytest.fixture
def commands(monkeypatch):
    """Commands in place of training and testing, of a detector that finds boxes but no masks.

    Training writes a checkpoint before the time is up.
    """
    seen = []

    def run(command, timeout=None, **_):
        seen.append(command[1])
        if 'tools/train.py' in command:
            torch.save({}, f'{command[command.index("--work-dir") + 1]}/epoch_1.pth')
        if timeout is not None and timeout < 10:
            raise subprocess.TimeoutExpired(command, timeout)
        if 'tools/test.py' in command:
            assert command[3].endswith('epoch_1.pth')
            with open(command[command.index('--out') + 1], 'w') as file:
                json.dump({'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_50': 0.5}, file)

    monkeypatch.setattr(stvit_detection.subprocess, 'run', run)
    return seen


def test_interrupted_runs_go_on_and_finished_ones_are_read(commands, tmp_path):
    arguments = (tmp_path / 'run', 'config.py', ['randomness.seed=0'])
    assert stvit_detection.result(*arguments, seconds=0) is None
    assert commands == []
    assert stvit_detection.result(*arguments, seconds=5) is None
    assert commands == ['tools/train.py']
    metrics = stvit_detection.result(*arguments, seconds=60)
    assert commands == ['tools/train.py', 'tools/train.py', 'tools/test.py']
    assert list(metrics.values()) == [25, 50, 0, 0]
    assert stvit_detection.result(*arguments, seconds=60) == metrics
    assert len(commands) == 3


@pytest.mark.parametrize('seconds', [5, 60])
def test_a_run_with_other_settings_is_refused(commands, tmp_path, seconds):
    stvit_detection.result(tmp_path, 'config.py', ['randomness.seed=0'], seconds)
    with pytest.raises(ConfigError, match='holds a run with .*seed=0.*name another --work-dir'):
        stvit_detection.result(tmp_path, 'config.py', ['train_cfg.max_epochs=1'], seconds)


def test_checkpoints_of_unknown_settings_are_not_continued(commands, tmp_path):
    torch.save({}, tmp_path / 'epoch_2.pth')
    with pytest.raises(ConfigError, match='holds checkpoints and no result.json.*--work-dir'):
        stvit_detection.result(tmp_path, 'config.py', ['randomness.seed=0'], seconds=60)
    assert commands == []
