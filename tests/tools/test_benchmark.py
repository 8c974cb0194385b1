import re
import sys

import pytest
import torch

from tests.conftest import run_tool
from tools.analysis_tools import benchmark


def test_compiled_models_compute_the_same(tiny_config, tmp_path):
    output = run_tool(
        'tools/analysis_tools/benchmark.py', tiny_config, '--batch-size', '2', '--repeats', '1',
        '--warmup', '1', '--device', 'cpu', '--backends', 'eager', 'compile',
        '--cfg-options', 'model.backbone.arch.num_layers=1',
        env={'TORCHINDUCTOR_CACHE_DIR': str(tmp_path), 'TORCHINDUCTOR_COMPILE_THREADS': '1'},
    ).stdout  # fmt: skip
    assert 'CPU, float32, batch 2, 32x16:' in output
    differences = re.findall(r'^(\w+) .* ms a batch .* x eager differs by (\S+)', output, re.M)
    assert [name for name, _ in differences] == ['eager', 'compile']
    assert all(float(difference) < 1e-4 for _, difference in differences)
    # Kernels were compiled, and not the eager ones run again.
    assert list(tmp_path.rglob('*.so'))


@pytest.mark.parametrize('broken', ['values', 'shape', 'nan'])
def test_runtimes_that_compute_something_else(broken, tiny_config, monkeypatch, capsys):
    outputs = {
        'values': lambda output: output + 0.1 * output.abs().max(),
        'shape': lambda output: output[:, :-1],
        'nan': lambda output: output * torch.nan,
    }
    monkeypatch.setattr(
        benchmark, 'onnx_forward', lambda model, size, ids: lambda x: outputs[broken](model(x))
    )
    command = ['benchmark.py', str(tiny_config), '--batch-size', '2', '--repeats', '1',
               '--device', 'cpu', '--backends', 'eager', 'onnx']  # fmt: skip
    monkeypatch.setattr(sys, 'argv', command)
    with pytest.raises(
        SystemExit, match=r'onnx differs from eager PyTorch by .* more than 1\.0e-03'
    ):
        benchmark.main()
    assert re.search('onnx .* differs by (1.0e-01|inf|nan)', capsys.readouterr().out)


def test_side_information_is_given(tiny_config, tmp_path, monkeypatch, capsys):
    config = tmp_path / 'sie.py'
    config.write_text(
        f"_base_ = '{tiny_config}'\n"
        'model = dict(backbone=dict(sie=dict(num_cameras=6, num_views=2)))\n'
    )
    command = ['benchmark.py', str(config), '--batch-size', '2', '--repeats', '1',
               '--device', 'cpu', '--backends', 'eager', 'onnx']  # fmt: skip
    monkeypatch.setattr(sys, 'argv', command)
    benchmark.main()
    (difference,) = re.findall(r'^onnx .* differs by (\S+)', capsys.readouterr().out, re.M)
    assert float(difference) < 1e-4
