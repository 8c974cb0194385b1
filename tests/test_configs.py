from pathlib import Path

import pytest
import torch

from vitdown.engine.launch import load_config
from vitdown.registry import MODELS

ROOT = Path(__file__).resolve().parents[1] / 'configs'
CONFIGS = sorted(p for p in ROOT.rglob('*.py') if '_base_' not in p.parts)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config_builds(path):
    """The model of every config builds and its parts fit each other."""
    cfg = load_config(str(path))
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    size = model.backbone.img_size
    assert model.head.in_channels == model.backbone.embed_dims
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        steps = {step['type']: step for step in loader.dataset.pipeline}
        assert tuple(steps['Resize']['scale'])[::-1] == tuple(size)
