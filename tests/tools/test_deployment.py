import sys

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from tests.conftest import run_tool
from tools.deployment import export_onnx
from vitdown.apis import ReIDInferencer
from vitdown.deployment.openvino import openvino_model
from vitdown.engine import launch


def test_an_exported_model_embeds_as_the_inferencer_does(
    tiny_config, tiny_checkpoint, market_root, tmp_path
):
    output = run_tool(
        'tools/deployment/export_onnx.py', tiny_config, tiny_checkpoint, tmp_path / 'a.onnx',
        '--preprocess', '--openvino',
    ).stdout  # fmt: skip
    assert 'a.onnx: 32x16, batch of any size, differs from PyTorch by' in output
    assert 'a.xml: 32x16, batch of any size, differs from PyTorch by' in output
    query = market_root / 'query'
    expected = ReIDInferencer(tiny_config, tiny_checkpoint, device='cpu')(query).features
    # These images have the model's size already.
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(query.iterdir())])
    (features,) = onnxruntime.InferenceSession(tmp_path / 'a.onnx').run(None, {'images': images})
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)
    found = openvino_model(tmp_path / 'a.xml')(images)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_refused_exports_end_in_one_message(
    tiny_config, tiny_checkpoint, tmp_path, monkeypatch, capsys
):
    command = ['export_onnx.py', tiny_config, tiny_checkpoint, tmp_path / 'a.onnx']
    monkeypatch.setattr(sys, 'argv', [*map(str, command), '--shape', '0', '16'])
    with pytest.raises(SystemExit):
        launch.run_tool(export_onnx.main)
    assert 'error: VisionTransformer with BNNeckHead can not be written' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
