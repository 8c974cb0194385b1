"""mmpretrain's inferencer runs vitdown's configs, and reads checkpoints without running code."""

import pytest
import torch
from mmpretrain import ImageClassificationInferencer

from tests.conftest import ROOT
from vitdown.checkpoint import CheckpointError
from vitdown.engine.launch import load_config
from vitdown.registry import MODELS

CONFIG = str(ROOT / 'configs/mctf/vit-mini_1xb128-10e_cifar10-32x32.py')


class Evil:
    def __reduce__(self):
        return print, ('code of the checkpoint runs',)


def test_classes_of_images(market_root, tmp_path):
    model = MODELS.build(load_config(CONFIG).model)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'model.pth')
    classify = ImageClassificationInferencer(CONFIG, str(tmp_path / 'model.pth'), device='cpu')
    (result,) = classify(str(next((market_root / 'query').iterdir())))
    assert len(result['pred_scores']) == 10
    assert result['pred_scores'].sum() == pytest.approx(1, abs=1e-4)


def test_checkpoints_that_hold_code_are_refused(tmp_path, capsys):
    torch.save({'state_dict': {}, 'evil': Evil()}, tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match='could run code'):
        ImageClassificationInferencer(CONFIG, str(tmp_path / 'evil.pth'), device='cpu')
    assert 'code of the checkpoint runs' not in capsys.readouterr().out
