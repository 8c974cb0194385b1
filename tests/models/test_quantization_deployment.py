import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vitdown.checkpoint import CheckpointError
from vitdown.deployment.quantized import export_quantized_onnx, quantized_session
from vitdown.models.backbones import (
    DistilledVisionTransformer,
    SwinTransformer,
    VisionTransformer,
)
from vitdown.models.quantization import (
    LSQQuantizer,
    QKRProjection,
    QuantQKV,
    integer_copy,
    load_packed,
    read_packed,
    save_packed,
)
from vitdown.models.quantization.packed import integer_weights, quantized_modules, unpack_weight
from vitdown.models.quantization.portable import portable_integer_copy
from vitdown.models.quantization.runtime import IntegerLinear, IntegerQKR

ARCH = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48)


def build(bits=4, swin=False, seed=0, arch=ARCH, trained=True, img_size=32, **settings):
    torch.manual_seed(seed)
    cfg = dict(type='OFQ', **{'w_bits': bits, 'a_bits': bits, **settings})
    if swin:
        model = SwinTransformer(
            arch=dict(embed_dims=16, depths=[2, 2], num_heads=[2, 4]),
            img_size=32,
            window_size=4,
            out_indices=(1,),
            quant_cfg=cfg,
        )
    else:
        model = VisionTransformer(arch, img_size=img_size, patch_size=8, quant_cfg=cfg)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.add_(1)
            # So that tokens differ in what they attend to
            elif isinstance(module, (QKRProjection, QuantQKV)):
                module.weight.mul_(4)
    model.eval()
    if trained:
        with torch.no_grad():
            model(torch.randn(8, 3, img_size, img_size))
    return model


@pytest.fixture
def image():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))


VARIANTS = [
    dict(bits=2),
    dict(bits=3, qkr=False),
    dict(bits=4, act_granularity='tensor'),
    dict(bits=4, qkr=False, w_quant='lsq'),
    dict(bits=7),
    dict(bits=8),
    dict(bits=8, w_quant='lsq'),
    dict(bits=2, swin=True),
    dict(bits=4, swin=True, qkr=False),
]


@pytest.mark.parametrize('variant', VARIANTS, ids=str)
@torch.no_grad()
def test_packed_file_computes_in_integers_what_was_trained(tmp_path, image, variant):
    model = build(**variant)
    save_packed(model, tmp_path / 'packed.safetensors')
    other = build(**variant, seed=1, trained=False)
    integer = load_packed(other, tmp_path / 'packed.safetensors')
    expected, found = model(image)[-1], integer(image)[-1]
    assert (found - expected).abs().max() < 1e-4 * expected.std()
    assert any(isinstance(m, IntegerLinear) for m in integer.modules())
    qkr = any(isinstance(m, IntegerQKR) for m in integer.modules())
    assert qkr == variant.get('qkr', True)
    assert not any(p.requires_grad for p in integer.parameters())


@torch.no_grad()
def test_the_models_here_need_their_logits(image, monkeypatch):
    model = integer_copy(build())
    expected = model(image)[-1]
    compute = IntegerQKR.logits_and_values

    def uniform(self, x):
        logits, values = compute(self, x)
        return torch.zeros_like(logits), values

    monkeypatch.setattr(IntegerQKR, 'logits_and_values', uniform)
    assert (model(image)[-1] - expected).abs().max() > 0.1 * expected.std()


@pytest.mark.parametrize('swin', [False, True])
@torch.no_grad()
def test_integer_models_explain_another_image_size(swin):
    model = integer_copy(build(swin=swin, skip=('patch_embed',)))
    with pytest.raises(ValueError, match=r"'token': the .* was built for .* and got"):
        model(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
def test_codes_survive_and_the_file_has_the_size_of_its_bits(tmp_path, bits):
    # Wide enough that codes outweigh steps and biases
    arch = dict(embed_dims=96, num_layers=2, num_heads=3, feedforward_channels=384)
    model = build(bits, qkr=False, arch=arch)
    size = save_packed(model, tmp_path / 'packed.safetensors')
    tensors, layers, _ = read_packed(tmp_path / 'packed.safetensors')
    weights = 0
    for name, module in quantized_modules(model):
        for part, weight in integer_weights(module).items():
            found = unpack_weight(tensors, f'{name}.{part}', layers[name][part])
            assert torch.equal(found.codes, weight.codes), name
            assert torch.equal(found.scale, weight.scale), name
            weights += weight.codes.numel() * weight.bits / 8
    codes = sum(value.numel() for name, value in tensors.items() if name.endswith('.codes'))
    assert codes == pytest.approx(weights, rel=0.01)
    rest = sum(v.numel() * v.element_size() for k, v in tensors.items() if not k.endswith('.codes'))
    # Names, shapes and bits of everything
    assert codes + rest < size < codes + rest + 16_000


class TestMistakes:
    def test_steps_that_are_not_set(self, tmp_path):
        with pytest.raises(ValueError, match='steps of the quantizers are not set'):
            save_packed(build(trained=False), tmp_path / 'packed.safetensors')
        with pytest.raises(ValueError, match='steps of the quantizers are not set'):
            export_quantized_onnx(build(trained=False), tmp_path / 'model.onnx', (32, 32))

    def test_full_precision(self, tmp_path):
        model = VisionTransformer(ARCH, img_size=32, patch_size=8)
        with pytest.raises(ValueError, match='no quantized weights to pack'):
            save_packed(model, tmp_path / 'packed.safetensors')

    @pytest.mark.parametrize(
        ('settings', 'message'),
        [
            (dict(act_granularity='channel'), r"layers.*act_granularity='token' or 'tensor'"),
            (dict(overrides={'layers.1.ffn': dict(a_bits=None)}), 'set quant_cfg.a_bits for layer'),
        ],
    )
    def test_what_could_not_be_loaded_is_not_written(self, tmp_path, settings, message):
        with pytest.raises(ValueError, match=message):
            save_packed(build(**settings), tmp_path / 'packed.safetensors')
        assert not any(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ('other', 'message'),
        [
            (dict(bits=3), r"has \{'value': \{'bits': 4.*config \{'value': \{'bits': 3"),
            (dict(qkr=False), r"layers.0.attn.qkv, the config \{'weight': \{'bits': 4"),
            (dict(a_bits=2), r"has \{'bits': 4.* for layers.0.*_quant, the config \{'bits': 2"),
            (dict(act_granularity='tensor'), r"'steps': 17\} for .*the config .*'steps': 1\}"),
            (dict(img_size=40), r"'steps': 17\} for .*the config .*'steps': 26\}"),
            (dict(arch={**ARCH, 'feedforward_channels': 96}), r'\[48, 24\].*\[96, 24\]'),
            (dict(skip=['layers.1']), r"'layers.1.attn.proj'.*quantized in one of them only"),
            (dict(arch={**ARCH, 'num_layers': 3}), 'quantized in one of them only'),
        ],
    )
    def test_files_of_other_models(self, tmp_path, other, message):
        save_packed(build(), tmp_path / 'packed.safetensors')
        with pytest.raises(CheckpointError, match=message):
            load_packed(build(**other), tmp_path / 'packed.safetensors')

    def test_files_of_other_kinds(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='does not exist'):
            read_packed(tmp_path / 'nothing.safetensors')
        (tmp_path / 'damaged.safetensors').write_bytes(b'12345678901')
        with pytest.raises(CheckpointError, match='damaged'):
            read_packed(tmp_path / 'damaged.safetensors')
        save_file({'x': torch.zeros(1)}, tmp_path / 'plain.safetensors')
        with pytest.raises(CheckpointError, match='not a packed model'):
            read_packed(tmp_path / 'plain.safetensors')

    def test_a_missing_tensor(self, tmp_path):
        path = tmp_path / 'packed.safetensors'
        save_packed(build(), path)
        from safetensors import safe_open

        with safe_open(path, 'pt') as file:
            metadata = file.metadata()
        tensors = load_file(path)
        del tensors['pos_embed']
        save_file(tensors, path, metadata)
        with pytest.raises(CheckpointError, match=r"missing \['pos_embed'\]"):
            load_packed(build(), path)


@pytest.mark.parametrize('variant', [dict(bits=8), dict(bits=2, swin=True, qkr=False)], ids=str)
def test_onnx_in_integers(tmp_path, image, variant):
    import onnx

    model = build(**variant)
    path = tmp_path / 'model.onnx'
    batch = 4 if variant.get('swin') else None
    options = dict(batch=batch, flavour='integer')
    assert export_quantized_onnx(model, path, (32, 32), **options) < 1e-4
    (found,) = quantized_session(path).run(None, {'images': image.numpy()})
    with torch.no_grad():
        expected = model(image)[-1].numpy()
        eager = portable_integer_copy(model)(image)[-1].numpy()
    assert np.abs(found - expected).max() < 1e-4 * expected.std()
    assert np.abs(eager - expected).max() < 1e-4 * expected.std()
    graph = onnx.load(path).graph
    weights = [len(integer_weights(m)) for _, m in quantized_modules(model)]
    logits = sum(isinstance(m, QKRProjection) for m in model.modules())
    operators = [node.op_type for node in graph.node]
    # The image's convolution has dequantized weights.
    assert operators.count('MatMulInteger') == sum(weights) - 1 + logits
    assert operators.count('DequantizeLinear') == 1
    int8 = [w for w in graph.initializer if w.data_type == onnx.TensorProto.INT8]
    assert len([w for w in int8 if len(w.dims) > 1]) == sum(weights)


def test_onnx_flavours_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"one of \('qdq', 'integer'\), got 'int8'"):
        export_quantized_onnx(build(), tmp_path / 'model.onnx', (32, 32), flavour='int8')
    model = build(act_granularity='channel')
    with pytest.raises(ValueError, match="act_granularity='token' or 'tensor'"):
        export_quantized_onnx(model, tmp_path / 'model.onnx', (32, 32), flavour='integer')


@pytest.mark.parametrize(
    'variant', [dict(bits=4), dict(bits=8, w_quant='lsq', qkr=False), dict(bits=4, swin=True)]
)
def test_onnx_agrees_and_holds_int8_weights(tmp_path, image, variant):
    import onnx

    model = build(**variant)
    path = tmp_path / 'model.onnx'
    batch = 4 if variant.get('swin') else None
    assert export_quantized_onnx(model, path, (32, 32), batch=batch) < 1e-3
    (found,) = quantized_session(path).run(None, {'images': image.numpy()})
    with torch.no_grad():
        expected = model(image)[-1].numpy()
    assert np.abs(found - expected).max() < 1e-3 * expected.std()
    graph = onnx.load(path).graph
    int8 = [w for w in graph.initializer if w.data_type == onnx.TensorProto.INT8]
    low_bit = sum(len(integer_weights(m)) for _, m in quantized_modules(model))
    assert len([w for w in int8 if len(w.dims) > 1]) == low_bit
    operators = [node.op_type for node in graph.node]
    assert operators.count('DequantizeLinear') == low_bit
    activations = [
        m for n, m in model.named_modules()
        if isinstance(m, LSQQuantizer) and not n.endswith(('weight_quant', 'product_quant'))
    ]  # fmt: skip
    assert operators.count('Round') == len(activations)


def test_a_wrong_onnx_file_is_not_written(tmp_path, monkeypatch):
    class Session:
        def run(self, _, inputs):
            return [np.zeros((len(inputs['images']), 24), np.float32)]

    monkeypatch.setattr(torch.onnx, 'export', lambda *args, **_: args[2].write_bytes(b''))
    monkeypatch.setattr('vitdown.deployment.quantized.quantized_session', lambda _: Session())
    with pytest.raises(ValueError, match=r'differs from the model by .* and was not written'):
        export_quantized_onnx(build(), tmp_path / 'model.onnx', (32, 32))
    assert not any(tmp_path.iterdir())


def test_onnx_of_a_distilled_backbone_in_eight_bits(tmp_path):
    cfg = dict(type='OFQ', w_bits=8, a_bits=8)
    model = DistilledVisionTransformer(ARCH, img_size=32, patch_size=8, quant_cfg=cfg).eval()
    with torch.no_grad():
        model(torch.randn(8, 3, 32, 32))
    assert export_quantized_onnx(model, tmp_path / 'model.onnx', (32, 32)) < 1e-3
