import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

TINY_CONFIG = """
_base_ = [
    '{root}/configs/_base_/models/reid_vit.py',
    '{root}/configs/_base_/datasets/market1501_256x128.py',
    '{root}/configs/_base_/schedules/adamw_cosine_40e.py',
    '{root}/configs/_base_/default_runtime.py',
]
input_size = (32, 16)
train_pipeline = [
    dict(type='LoadReIDImage'),
    dict(type='Resize', scale=input_size[::-1], interpolation='bicubic', backend='pillow'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmpretrain.RandomCrop', crop_size=input_size, padding=2),
    dict(type='PixelRandomErasing', erase_prob=0.5, mean=127.5, std=127.5),
    dict(type='PackReIDInputs'),
]
test_pipeline = [
    dict(type='LoadReIDImage'),
    dict(type='Resize', scale=input_size[::-1], interpolation='bilinear', backend='pillow'),
    dict(type='PackReIDInputs'),
]
model = dict(
    backbone=dict(
        arch=dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48),
        img_size=input_size,
        patch_size=8,
    ),
    head=dict(num_classes=6, in_channels=24),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(num_identities=4, num_instances=2),
    dataset=dict(data_root='{data_root}', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=8, num_workers=0, dataset=dict(data_root='{data_root}', pipeline=test_pipeline)
)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=4, val_interval=2)
param_scheduler = dict(warmup_epochs=1)
default_hooks = dict(logger=dict(interval=1))
"""


def write_market(root: Path, num_train: int = 6, num_test: int = 7) -> Path:
    """A tiny set in the Market-1501 convention: a tint for each identity, deep in noise."""
    rng = np.random.default_rng(0)

    def write(folder: str, identity: int, camera: int, number: int) -> None:
        # So much noise that rankings stay imperfect: lost or swapped samples change the metrics.
        tint = np.random.default_rng(identity).normal(128, 10, size=3)
        image = np.clip(tint + rng.normal(0, 70, size=(32, 16, 3)), 0, 255).astype(np.uint8)
        path = root / folder / f'{identity:04d}_c{camera}s1_{number:06d}_00.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)

    for identity in range(1, num_train + 1):
        for number in range(4):
            write('bounding_box_train', identity, 1 + number % 2, number)
    for identity in range(100, 100 + num_test):
        write('query', identity, 1, 0)
        for number in range(1, 4):
            write('bounding_box_test', identity, 1 + number % 3, number)
    for number in range(4):
        write('bounding_box_test', 0, 1 + number, number)
    return root


@pytest.fixture(autouse=True)
def own_scope():
    """No test leaves a default scope to the next one."""
    yield
    if 'mmengine.registry' in sys.modules:
        sys.modules['mmengine.registry'].DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def open_logger():
    """A runner closes its log file and leaves the logger current; later tests need an open one."""
    yield
    if 'mmengine.logging' in sys.modules:
        sys.modules['mmengine.logging'].MMLogger.get_instance(f'after_{uuid4().hex}')


@pytest.fixture(scope='session')
def market_root(tmp_path_factory) -> Path:
    """Folder of a tiny dataset in the Market-1501 convention; not to be changed."""
    return write_market(tmp_path_factory.mktemp('market1501'))


@pytest.fixture(scope='session')
def tiny_config(tmp_path_factory, market_root) -> Path:
    """Config file that trains a tiny ViT on ``market_root`` for four epochs."""
    path = tmp_path_factory.mktemp('configs') / 'tiny.py'
    path.write_text(TINY_CONFIG.format(root=ROOT, data_root=market_root))
    return path


@pytest.fixture(scope='session')
def tiny_checkpoint(tmp_path_factory, tiny_config) -> Path:
    """Random weights of ``tiny_config``'s model."""
    # Imported here: most tests need neither models nor torch.
    import torch

    from vitdown.engine.launch import load_config
    from vitdown.registry import MODELS

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS.build(load_config(str(tiny_config)).model)
        model.init_weights()
    path = tmp_path_factory.mktemp('weights') / 'tiny.pth'
    torch.save({'state_dict': model.state_dict()}, path)
    return path


def run_tool(*args, check: bool = True, **kwargs) -> subprocess.CompletedProcess:
    """Run a Python tool of the repository as a user would; output is captured."""
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT), **kwargs.pop('env', {})}
    result = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=kwargs.pop('cwd', ROOT),
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        **kwargs,
    )
    if check and result.returncode:
        raise AssertionError(f'{args} failed:\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}')
    return result
