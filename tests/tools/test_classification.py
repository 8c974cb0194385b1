"""Fine-grained classification from a folder of one's own, trained and tested by the tools."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, run_tool

CONFIG = """
_base_ = '{root}/configs/dcal/dcal_vit-mini_1xb64-40e_flowers17-96x96.py'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmpretrain.RandomCrop', crop_size=24),
    dict(type='mmpretrain.PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmpretrain.CenterCrop', crop_size=24),
    dict(type='mmpretrain.PackInputs'),
]
model = dict(
    backbone=dict(
        arch=dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48), img_size=24
    ),
    head=dict(num_classes=3, in_channels=24, num_heads=3),
)
folder = dict(type='mmpretrain.CustomDataset', data_root='{data}', with_label=True)
train_dataloader = dict(
    batch_size=8, num_workers=0,
    dataset=dict(_delete_=True, **folder, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=8, num_workers=0, dataset=dict(_delete_=True, **folder, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=8, val_interval=8)
param_scheduler = dict(warmup_epochs=1)
"""  # fmt: skip


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    """Three classes of one colour each; 25 images, so that one is left over after three batches."""
    root = tmp_path_factory.mktemp('flowers')
    rng = np.random.default_rng(0)
    for index in range(25):
        image = rng.integers(0, 60, (28, 28, 3), dtype=np.uint8)
        image[..., index % 3] += 150
        path = root / f'class{index % 3}' / f'{index}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def test_training_and_testing(tmp_path, flowers):
    config = tmp_path / 'config.py'
    config.write_text(CONFIG.format(root=ROOT, data=flowers))
    run_tool('tools/train.py', config, '--work-dir', tmp_path)
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    validated = json.loads(log.read_text().splitlines()[-1])
    assert validated['accuracy/top1'] > 90
    tested = run_tool(
        'tools/test.py', config, tmp_path / 'epoch_8.pth', '--work-dir', tmp_path / 'test'
    )
    assert f'accuracy/top1: {validated["accuracy/top1"]:.4f}' in tested.stdout + tested.stderr
