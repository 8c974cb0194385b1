"""The tool that packs quantized models, run as a user runs it."""

import re
import runpy

import onnx
import pytest
import torch

from tests.conftest import run_tool
from vitdown.engine.launch import load_config
from vitdown.registry import MODELS

TOOL = 'tools/deployment/export_quantized.py'


def write_config(folder, tiny_config, quant_cfg):
    path = folder / 'quantized.py'
    path.write_text(
        f"_base_ = '{tiny_config}'\nmodel = dict(backbone=dict(quant_cfg={quant_cfg!r}))\n"
    )
    return path


def test_report_of_a_packed_re_id_model(tmp_path, tiny_config):
    config = write_config(tmp_path, tiny_config, dict(type='OFQ', w_bits=4, a_bits=4))
    model = MODELS.build(load_config(str(config)).model).eval()
    with torch.no_grad():
        model(torch.randn(4, 3, 32, 16))
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'model.pth')
    packed, file = tmp_path / 'packed.safetensors', tmp_path / 'model.onnx'
    args = (TOOL, config, tmp_path / 'model.pth', packed, '--repeats', '1', '--data')
    options = ('--onnx', file, '--onnx-flavour', 'integer', '--onnx-tolerance', '1e-4')
    output = run_tool(*args, *options).stdout
    sizes = [float(x) for x in re.findall(r'([\d.]+) MiB', output)]
    assert sizes[0] < sizes[1]
    assert f'{packed.stat().st_size / 2**20:.3f} MiB' in output
    assert float(re.search(r'largest difference +(\S+) standard', output)[1]) < 1e-3
    assert re.search(r'same highest output +100.0 % of 8 images', output)
    for name in ('float32', 'fake quantization', 'int8 runtime'):
        assert re.search(rf'^{name} +[\d.]+ ms an image', output, re.M)
    assert re.search(r'ONNX file .* differs by \d', output)
    operators = {node.op_type for node in onnx.load(file).graph.node}
    assert 'MatMulInteger' in operators


def test_full_precision_is_the_same_network(tmp_path, tiny_config):
    full_precision = runpy.run_path(TOOL)['full_precision']
    config = write_config(tmp_path, tiny_config, dict(type='OFQ'))
    plain = load_config(str(tiny_config)).model
    assert full_precision(load_config(str(config)).model) == plain.to_dict()


def test_mistakes_end_in_one_line(tmp_path, tiny_config):
    config = write_config(tmp_path, tiny_config, dict(type='OFQ'))
    plain = MODELS.build(load_config(str(tiny_config)).model)
    torch.save({'state_dict': plain.state_dict()}, tmp_path / 'plain.pth')
    for path, output, message in (
        (tiny_config, 'x.safetensors', 'has no quantized model'),
        (config, 'x.safetensors', 'full-precision checkpoint'),
        (config, 'x.pth', 'must be a .safetensors file'),
    ):
        failed = run_tool(TOOL, path, tmp_path / 'plain.pth', tmp_path / output, check=False)
        assert failed.returncode == 2
        assert message in failed.stderr
        assert 'Traceback' not in failed.stderr


@pytest.mark.parametrize('option', ['--images', '--repeats', '--threads', '--onnx-batch'])
def test_numbers_are_positive(monkeypatch, capsys, option):
    tool = runpy.run_path(TOOL)
    monkeypatch.setattr('sys.argv', [TOOL, 'config.py', 'x.pth', 'x.safetensors', option, '0'])
    with pytest.raises(SystemExit):
        tool['parse_args']()
    assert f'argument {option}: must be at least 1, got 0' in capsys.readouterr().err
