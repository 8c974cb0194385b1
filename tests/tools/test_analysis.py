"""Analysis and conversion tools, run as a user runs them."""

import json
import re

import torch
from PIL import Image

from tests.conftest import run_tool
from vitdown.checkpoint import load_checkpoint_file
from vitdown.models.backbones import VisionTransformer

CONFIG = 'configs/reid/deit-small_1xb64-120e_market1501-256x128.py'


def test_get_flops_of_a_published_model():
    output = run_tool('tools/analysis_tools/get_flops.py', CONFIG).stdout
    assert 'backbone 21.640 M' in output
    assert '2.930 G multiply-adds' in output
    larger = run_tool('tools/analysis_tools/get_flops.py', CONFIG, '--shape', '384', '128').stdout
    assert float(re.search(r'([\d.]+) G multiply-adds', larger)[1]) > 4


def test_get_flops_of_low_bits(tiny_config, tmp_path):
    config = tmp_path / 'quantized.py'
    config.write_text(
        f"_base_ = '{tiny_config}'\nmodel = dict(backbone=dict(quant_cfg=dict(type='OFQ')))\n"
    )
    tool, file = 'tools/analysis_tools/get_flops.py', tmp_path / 'report.json'
    output = run_tool(tool, config, '--bits', '--json', file).stdout
    content = json.loads(file.read_text())
    assert re.search(r'^ +4 +4 .* backbone.layers.0.attn.qkv$', output, re.M)
    macs = f'{content["total"]["macs"] / 1e9:.3f} G multiply-adds'
    assert macs in output


def test_print_config_shows_overrides():
    output = run_tool(
        'tools/analysis_tools/print_config.py',
        CONFIG,
        '--cfg-options',
        'optim_wrapper.optimizer.lr=5',
    ).stdout
    assert 'lr=5' in output
    assert "arch='deit-small'" in output


def test_benchmark_compares_runtimes(tiny_config):
    output = run_tool(
        'tools/analysis_tools/benchmark.py', tiny_config, '--batch-size', '2', '--repeats', '3',
        '--device', 'cpu', '--backends', 'eager', 'onnx',
    ).stdout  # fmt: skip
    assert 'CPU, float32, batch 2, 32x16:' in output
    for name in ('eager', 'onnx'):
        assert re.search(rf'{name} +[\d.]+ images/s +[\d.]+ ms a batch +[\d.]+ x eager', output)


def test_browse_dataset_writes_contact_sheets(tiny_config, tmp_path):
    output = run_tool(
        'tools/analysis_tools/browse_dataset.py', tiny_config, '--out-dir', tmp_path,
        '--batches', '2',
    ).stdout  # fmt: skip
    assert '8 images of 4 identities' in output
    sizes = {Image.open(path).size for path in tmp_path.glob('*.png')}
    assert sizes == {(8 * 18, 34)}


def test_make_synthetic_reid(tmp_path):
    args = ('tools/dataset_converters/make_synthetic_reid.py', tmp_path / 'set', '--num-train-ids',
            '2', '--num-test-ids', '2', '--num-cameras', '2', '--images-per-camera', '2',
            '--image-size', '32', '16')  # fmt: skip
    assert 'bounding_box_train 8' in run_tool(*args).stdout
    failed = run_tool(*args, '--seed', '7', check=False)
    assert failed.returncode == 2
    assert 'other settings' in failed.stderr


def test_convert_there_and_back(tmp_path):
    import timm

    weights = timm.create_model(
        'vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=24, depth=2
    ).state_dict()
    there, back = tmp_path / 'vitdown.safetensors', tmp_path / 'timm.pth'
    torch.save(weights, tmp_path / 'weights.pth')
    tool = 'tools/model_converters/convert.py'
    run_tool(tool, 'timm', tmp_path / 'weights.pth', there)
    arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=96)
    model = VisionTransformer(
        arch, img_size=32, patch_size=8, init_cfg=dict(type='Pretrained', checkpoint=str(there))
    )
    model.init_weights()
    torch.testing.assert_close(model.ln1.weight, weights['norm.weight'])
    run_tool(tool, 'timm', there, back, '--reverse')
    returned = load_checkpoint_file(back)
    assert all(torch.equal(returned[key], weights[key]) for key in weights)
    failed = run_tool(tool, 'transreid', tmp_path / 'weights.pth', back, check=False)
    assert failed.returncode == 2
    assert 'The TransReID format has no weights cls_token' in failed.stderr
