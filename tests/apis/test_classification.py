"""mmpretrain's inferencer runs vitdown's configs, and reads checkpoints without running code."""

import numpy as np
import pytest
import torch
from mmpretrain import ImageClassificationInferencer

from tests.conftest import ROOT
from vitdown.checkpoint import CheckpointError
from vitdown.engine.launch import load_config
from vitdown.registry import MODELS

CONFIG = str(ROOT / 'configs/mctf/vit-mini_1xb128-10e_cifar10-32x32.py')
# One of each kind of model
CONFIGS = [
    'dcal/dcal_vit-mini_1xb64-40e_flowers17-96x96.py',
    'dcal/vit-mini_1xb64-40e_flowers17-96x96.py',
    'mctf/mctf-r8_vit-mini_1xb128-3e_cifar10-32x32.py',
    'nkd_uskd/nkd_resnet8_1xb64-10e_cifar10-32x32.py',
    'nvit/nvit-prune_vit-mini_1xb128-1e_cifar10-32x32.py',
    'ofq/ofq-w4a4_vit-mini_1xb128-10e_cifar10-32x32.py',
    'smmix/smmix_vit-mini_1xb64-40e_flowers17-96x96.py',
    'stvit/stvit-r-swin-mini_1xb64-20e_flowers17-96x96.py',
    'stvit/stvit-vit-mini_1xb64-20e_flowers17-96x96.py',
    'stvit/swin-mini_1xb64-20e_flowers17-96x96.py',
    'unlearnable/resnet-mini_1xb128-6e_cifar10-32x32.py',
    'unlearnable/vit-mini_1xb128-12e_cifar10-32x32.py',
]


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


@pytest.mark.parametrize('name', CONFIGS)
def test_models_are_those_of_vitdown(name):
    # First, as a process of its own begins: without a default scope
    classify = ImageClassificationInferencer(
        str(ROOT / 'configs' / name), pretrained=False, device='cpu'
    )
    (result,) = classify(np.zeros((32, 32, 3), np.uint8))
    assert result['pred_scores'].sum() == pytest.approx(1, abs=1e-4)
    own = MODELS.build(load_config(str(ROOT / 'configs' / name)).model)
    assert [type(part) for part in classify.model.modules()] == [type(p) for p in own.modules()]


def test_checkpoints_that_hold_code_are_refused(tmp_path, capsys):
    torch.save({'state_dict': {}, 'evil': Evil()}, tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match='could run code'):
        ImageClassificationInferencer(CONFIG, str(tmp_path / 'evil.pth'), device='cpu')
    assert 'code of the checkpoint runs' not in capsys.readouterr().out
