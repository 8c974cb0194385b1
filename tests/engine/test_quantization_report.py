"""Cost of quantized models against what the method's formulae say."""

import json

import pytest
import torch
from torch import nn

from vitdown.engine.complexity import get_flops
from vitdown.engine.quantization_report import quantization_report
from vitdown.models.backbones import (
    DistilledVisionTransformer,
    SwinTransformer,
    VisionTransformer,
)
from vitdown.models.heads import DistilledClsHead

ARCH = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=96)
W, H, N = 24, 3, 17  # width, heads, tokens


def report_of(model, size):
    return quantization_report(model, get_flops(model, (3, size, size)))


@pytest.mark.parametrize(('qkr', 'gmacs', 'mib'), [(True, 1.529, 1.88), (False, 1.261, 1.77)])
def test_cost_of_deit_tiny_in_two_bits(qkr, gmacs, mib):
    """As counted with the official modules."""
    cfg = dict(type='OFQ', w_bits=2, a_bits=2, qkr=qkr)
    model = nn.Sequential(
        DistilledVisionTransformer('deit-tiny', img_size=224, patch_size=16, quant_cfg=cfg),
        DistilledClsHead(1000, 192, quant_cfg=cfg),
    )
    report = report_of(model, 224)
    assert report.total['macs'] / 1e9 == pytest.approx(gmacs, abs=5e-4)
    assert report.total['size'] / 2**20 == pytest.approx(mib, abs=5e-3)


@pytest.mark.parametrize('qkr', [True, False])
def test_layers_of_a_block(qkr):
    overrides = {'layers.1': dict(w_bits=2, a_bits=None)}
    cfg = dict(type='OFQ', w_bits=3, a_bits=4, qkr=qkr, overrides=overrides)
    model = VisionTransformer(ARCH, img_size=32, patch_size=8, quant_cfg=cfg)
    report = report_of(model, 32)
    layers = {layer.name: layer for layer in report.layers}
    block = [layers[f'layers.0.{n}'] for n in ('attn', 'attn.qkv', 'attn.proj', 'ffn.layers.1')]
    bits = [(layer.w_bits, layer.a_bits) for layer in block]
    assert bits == [(4, 4), (3, 4), (3, 4), (3, 4)]
    in_block = [x for name, x in layers.items() if name.startswith('layers.0.')]
    if qkr:
        macs, weights = (10 + H) * W * W * N + (H + 1) * N * N * W, (10 + H) * W * W
    else:
        macs, weights = 12 * W * W * N + 2 * N * N * W, 12 * W * W
    assert sum(layer.macs for layer in in_block) == macs
    assert sum(layer.weights for layer in in_block) == weights
    products = block[0].macs
    assert sum(x.bitops for x in in_block) == (macs - products) * 3 * 4 + products * 4 * 4
    projection = layers['patch_embed.projection']
    assert (projection.w_bits, projection.a_bits) == (8, 8)
    assert (layers['layers.1.attn'].w_bits, layers['layers.1.attn'].a_bits) == (32, 32)
    second = layers['layers.1.attn.proj']
    assert (second.w_bits, second.a_bits, second.size) == (2, 32, W * W / 4)
    assert report.params == sum(p.numel() for p in model.parameters())


def test_nothing_is_counted_twice():
    """Swin's reductions are called from outside their stages; full precision has 32 bits."""
    for quant_cfg in (None, dict(type='OFQ')):
        model = SwinTransformer(
            arch=dict(embed_dims=16, depths=[2, 2], num_heads=[2, 4]),
            img_size=32,
            window_size=4,
            out_indices=(1,),
            quant_cfg=quant_cfg,
        )
        cost = get_flops(model, (3, 32, 32))
        report = quantization_report(model, cost)
        assert min(layer.macs for layer in report.layers) > 0
        assert report.total['macs'] == cost.macs
        bits = {layer.w_bits for layer in report.layers}
        assert bits == ({4, 8} if quant_cfg else {32})
    assert any('downsample.reduction' in layer.name for layer in report.layers)


def test_table_and_json_have_the_same_sums():
    model = VisionTransformer(ARCH, img_size=32, patch_size=8, quant_cfg=dict(type='OFQ'))
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    report = report_of(model, 32)
    content = json.loads(json.dumps(report.as_dict()))
    head, *lines, total = report.as_table().splitlines()
    assert len(lines) == len(content['layers']) == 11
    assert lines[0].split()[-1] == content['layers'][0]['name'] == 'patch_embed.projection'
    assert total.split()[0].replace(',', '') == str(content['total']['weights'])
    assert sum(x['bitops'] for x in content['layers']) == content['total']['bitops']
