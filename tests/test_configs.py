import re
from pathlib import Path

import pytest
import torch
import yaml

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


def test_metafile_lists_every_config():
    entries = yaml.safe_load((ROOT / 'reid/metafile.yml').read_text())['Models']
    assert sorted(entry['Config'] for entry in entries) == [
        f'configs/reid/{path.name}' for path in sorted((ROOT / 'reid').glob('*.py'))
    ]
    for entry in entries:
        with torch.device('meta'):
            model = MODELS.build(load_config(str(ROOT.parent / entry['Config'])).model)
        assert sum(p.numel() for p in model.parameters()) == entry['Metadata']['Parameters']


def readme_options() -> list[str]:
    """The Python snippets of the README that say what else a config can hold."""
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'reid/README.md').read_text(), re.S)
    return [part for block in blocks for part in re.split(r'\n(?=# )', block.strip())]


@pytest.mark.parametrize('snippet', readme_options())
def test_options_in_the_readme_build(tmp_path, snippet):
    base = ROOT / 'reid/vit-base_1xb64-120e_market1501-256x128.py'
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = '{base}'\n{snippet}\n")
    MODELS.build(load_config(str(config)).model)


def test_there_are_options_in_the_readme():
    assert len(readme_options()) >= 5
