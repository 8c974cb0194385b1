import random
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from vitdown.checkpoint import load_checkpoint_file
from vitdown.engine.seeding import epoch_seed


class Numbers(Dataset):
    """Twelve vectors; every sample carries a random number of its own."""

    metainfo = {}

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return dict(inputs=torch.full((3,), float(index)), noise=float(np.random.rand()))


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, inputs, noise, mode='tensor'):
        out = self.linear(torch.stack(inputs))
        return dict(loss=out.square().mean()) if mode == 'loss' else [dict()] * len(inputs)


class FallingScore(BaseMetric):
    """Validation scores 3, 5, 4, 6 ...: a new best every other time."""

    scores = [3.0, 5.0, 4.0, 6.0]

    def process(self, data_batch, data_samples):
        self.results.append(None)

    def compute_metrics(self, results):
        self.calls = getattr(self, 'calls', 0) + 1
        return {'score': self.scores[self.calls - 1]}


class Recorder(Hook):
    """Random numbers of each epoch, those of the samples and those of the main process."""

    def __init__(self):
        self.epochs = []

    def before_train_epoch(self, runner):
        self.epochs.append([random.random(), np.random.rand(), torch.rand(1).item()])

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.epochs[-1].extend(data_batch['noise'])


def run(work_dir: Path, epochs=3, workers=0, val=False, hooks=None, **kwargs) -> Runner:
    init_default_scope('vitdown')
    loader = dict(
        dataset=Numbers(),
        batch_size=4,
        num_workers=workers,
        sampler=dict(type='DefaultSampler', shuffle=False),
        worker_init_fn=dict(type='vitdown.seed_worker'),
    )
    runner = Runner(
        model=Model(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        val_dataloader=loader if val else None,
        val_cfg=dict() if val else None,
        val_evaluator=[FallingScore()] if val else None,
        default_hooks=dict(
            epoch_seed=dict(type='EpochSeedHook'),
            checkpoint=dict(type='SafeCheckpointHook', interval=1, **kwargs.pop('checkpoint', {})),
        ),
        custom_hooks=hooks,
        randomness=dict(seed=kwargs.pop('seed', 7)),
        default_scope='vitdown',
        experiment_name=f'{work_dir.name}_{uuid4().hex}',
        log_level='ERROR',
        **kwargs,
    )
    runner.train()
    return runner


@pytest.mark.parametrize('workers', [0, 2])
def test_epochs_draw_other_numbers_and_resume_draws_the_same(tmp_path, workers):
    whole, first, second = Recorder(), Recorder(), Recorder()
    run(tmp_path / 'whole', workers=workers, hooks=[whole])
    run(tmp_path / 'parts', epochs=1, workers=workers, hooks=[first])
    run(tmp_path / 'parts', workers=workers, hooks=[second], resume=True)
    assert first.epochs + second.epochs == whole.epochs
    numbers = [x for epoch in whole.epochs for x in epoch]
    assert len(set(numbers)) == len(numbers)


def test_epoch_seeds_depend_on_everything():
    seeds = {epoch_seed(s, e, r) for s in range(5) for e in range(5) for r in range(5)}
    assert len(seeds) == 125


class Witness(Hook):
    """Checkpoints on disk whenever one is about to be written."""

    def __init__(self):
        self.seen = []

    def before_save_checkpoint(self, runner, checkpoint):
        files = sorted(p.name for p in Path(runner.work_dir).glob('*.pth'))
        for name in files:
            load_checkpoint_file(Path(runner.work_dir) / name)
        self.seen.append(files)


def test_the_old_checkpoint_goes_only_after_the_new_one_is_there(tmp_path):
    witness = Witness()
    run(tmp_path, epochs=4, checkpoint=dict(max_keep_ckpts=1), hooks=[witness])
    assert witness.seen == [[], ['epoch_1.pth'], ['epoch_2.pth'], ['epoch_3.pth']]
    assert [p.name for p in tmp_path.glob('*.pth')] == ['epoch_4.pth']


def test_the_best_checkpoint_is_kept(tmp_path):
    witness = Witness()
    checkpoint = dict(max_keep_ckpts=1, save_best='score', rule='greater')
    run(tmp_path, epochs=4, val=True, checkpoint=checkpoint, hooks=[witness])
    names = sorted(p.name for p in tmp_path.glob('*.pth'))
    assert names == ['best_score_epoch_4.pth', 'epoch_4.pth']
    assert all(files for files in witness.seen[1:])


def test_no_temporary_files_stay(tmp_path):
    run(tmp_path, epochs=1)
    assert not list(tmp_path.rglob('*.tmp'))
