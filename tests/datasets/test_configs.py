"""The dataset configs build what they say, on miniature data."""

import re
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner

from tests.datasets.conftest import write_images
from vitdown.registry import DATASETS, TRANSFORMS

CONFIGS = Path(__file__).parents[2] / 'configs/_base_/datasets'
REID_CONFIGS = [
    path for path in sorted(CONFIGS.glob('*.py')) if 'ReIDMetric' in str(Config.fromfile(path))
]


@pytest.fixture(autouse=True)
def scope():
    before = DefaultScope.get_current_instance()
    init_default_scope('vitdown')
    yield
    if before is not None:
        init_default_scope(before.scope_name)


@pytest.mark.parametrize('path', REID_CONFIGS, ids=lambda path: path.stem)
def test_config(path, tmp_path, monkeypatch):
    monkeypatch.setenv('VITDOWN_DATA', str(tmp_path))
    config = Config.fromfile(path)
    loaders = (config.train_dataloader, config.val_dataloader, config.test_dataloader)
    roots = {Path(loader.dataset.data_root) for loader in loaders}
    assert len(roots) == 1
    assert roots.pop().parent == tmp_path
    assert len({loader.dataset.type for loader in loaders}) == 1
    assert DATASETS.get(config.train_dataloader.dataset.type) is not None
    height, width = map(int, re.search(r'_(\d+)x(\d+)', path.stem).groups())
    assert config.input_size == (height, width)
    sampler = config.train_dataloader.sampler
    assert sampler.num_identities * sampler.num_instances == config.train_dataloader.batch_size


def test_padding_of_omniglot_is_paper():
    """A single number would make mmpretrain pad only the first channel with it."""
    config = Config.fromfile(CONFIGS / 'omniglot_64x64.py')
    crop = TRANSFORMS.build(config.train_pipeline[2])
    results = [crop(dict(img=np.full((64, 64, 3), 255, np.uint8))) for _ in range(5)]
    assert min(result['img'].min() for result in results) == 255


def test_data_folder_defaults_to_data(monkeypatch):
    monkeypatch.delenv('VITDOWN_DATA', raising=False)
    config = Config.fromfile(CONFIGS / 'market1501_256x128.py')
    assert config.train_dataloader.dataset.data_root == 'data/market1501'


def test_loaders_of_a_config(tmp_path, monkeypatch):
    names = [f'{identity:04d}_c{1 + i}s1_0.jpg' for identity in range(1, 17) for i in range(4)]
    root = tmp_path / 'market1501'
    write_images(root / 'bounding_box_train', *names)
    write_images(root / 'query', *names[:2])
    write_images(root / 'bounding_box_test', *names[2:6])
    monkeypatch.setenv('VITDOWN_DATA', str(tmp_path))
    config = Config.fromfile(CONFIGS / 'market1501_256x128.py')
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.num_workers = 0
    (train_batch,) = Runner.build_dataloader(config.train_dataloader, seed=0)
    assert len(train_batch['inputs']) == 64
    assert {tuple(img.shape) for img in train_batch['inputs']} == {(3, 256, 128)}
    (test_batch,) = Runner.build_dataloader(config.val_dataloader, seed=0)
    subsets = [sample.subset for sample in test_batch['data_samples']]
    assert subsets == ['query'] * 2 + ['gallery'] * 4
