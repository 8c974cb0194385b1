import copy
from functools import partial

import pytest
import torch
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from mmpretrain.structures import DataSample
from torch import nn

from vitdown.checkpoint import CheckpointError, check_fit
from vitdown.converters import convert_state_dict, export_state_dict
from vitdown.models.backbones import (
    CaiT,
    DistilledVisionTransformer,
    HybridVisionTransformer,
    PyramidVisionTransformer,
    STViTDeiT,
    STViTSwin,
    SwinTransformer,
    T2TViT,
    VisionTransformer,
)
from vitdown.models.heads import DistilledClsHead
from vitdown.models.pretrained import load_pretrained
from vitdown.models.quantization import (
    OFQ,
    ConfidenceGuidedAnnealing,
    LSQQuantizer,
    OscillationMonitor,
    OscillationTracker,
    QKRProjection,
    QuantConv2d,
    QuantLinear,
    cga_free_mask,
    convert,
    lsq,
    pack_codes,
    quantizable,
    quantizers_of,
    statsq,
    statsq_codes,
    unpack_codes,
)
from vitdown.models.quantization.functional import threshold_distance
from vitdown.registry import MODELS

ARCH = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48)
DEEP = {**ARCH, 'num_layers': 6}
SWIN = dict(embed_dims=16, depths=[2, 2], num_heads=[2, 4])
W4A4 = dict(type='OFQ', w_bits=4, a_bits=4)
PLAIN = dict(type='OFQ', w_bits=4, a_bits=4, qkr=False)
# No steps per token: for any number of tokens
TENSOR = dict(type='OFQ', w_bits=4, a_bits=4, qkr=False, act_granularity='tensor')


def tiny_vit(quant_cfg=W4A4, cls=VisionTransformer, **kwargs):
    return cls(**{'arch': ARCH, 'img_size': 32, 'patch_size': 8, **kwargs}, quant_cfg=quant_cfg)


def tiny_swin(quant_cfg=W4A4, img_size=32, **kwargs):
    return SwinTransformer(
        arch=SWIN,
        img_size=img_size,
        window_size=4,
        out_indices=(1,),
        quant_cfg=quant_cfg,
        drop_path_rate=0.0,
        **kwargs,
    )


def run(model, size=32, batch=2, **kwargs):
    out = model(torch.randn(batch, 3, size, size), **kwargs)[-1]
    return torch.cat(out) if isinstance(out, tuple) else out


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class TestStatsQ:
    @pytest.mark.parametrize('bits', [2, 3, 4, 8])
    def test_grid_is_symmetric_and_the_gradient_passes_as_it_is(self, bits):
        weight = torch.randn(5, 400, requires_grad=True)
        upstream = torch.randn(5, 400)
        (statsq(weight, bits) * upstream).sum().backward()
        assert torch.equal(weight.grad, upstream)
        codes, scale = statsq_codes(weight, bits)
        assert (codes.min(), codes.max()) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        # Changing all signs changes all signs: the grid has no zero.
        torch.testing.assert_close(statsq(-weight, bits), -statsq(weight, bits))
        expected = scale * (codes + 0.5) / 2 ** (bits - 1)
        torch.testing.assert_close(statsq(weight, bits), expected)

    def test_rows_of_zeros_stay_finite(self):
        weight = torch.zeros(2, 8)
        weight[1] = 1
        assert statsq(weight, 2).isfinite().all()
        assert statsq(weight, 2)[0].abs().max() < 1e-30

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_half_precision_does_not_overflow_the_codes(self, dtype):
        codes, _ = statsq_codes(torch.tensor([[9.0, 1, 1, -9]], dtype=dtype), 2)
        assert codes.tolist() == [[1, 0, 0, -2]]

    def test_boundary_range_restricts_the_gradient(self):
        weight = torch.randn(8, 64, requires_grad=True)
        statsq(weight, 4, boundary_range=0.1).sum().backward()
        assert torch.equal(weight.grad.bool(), cga_free_mask(weight, 4, 0.1))


class TestLSQ:
    @pytest.mark.parametrize('step', [-0.5, 0.0, 1e-9])
    def test_steps_that_are_too_small_count_as_the_smallest(self, step):
        x = torch.randn(3, 4)
        out = lsq(x, torch.tensor([step]), -8, 7)
        torch.testing.assert_close(out, lsq(x, torch.tensor([1e-5]), -8, 7))
        assert out.isfinite().all()

    def test_gradients_are_those_of_the_formula(self):
        x = torch.randn(4, 5, 6, dtype=torch.float64)
        step = torch.rand(5, 1, dtype=torch.float64) + 0.2
        before, after = torch.randn(2, 6, dtype=torch.float64)
        leaves = [v.clone().requires_grad_() for v in (x, step, before, after)]
        upstream = torch.randn(4, 5, 6, dtype=torch.float64)
        (lsq(leaves[0], leaves[1], -4, 3, leaves[2], leaves[3]) * upstream).sum().backward()
        v = (x + before) / step
        inside = (v >= -4) & (v <= 3)
        slope = torch.where(inside, v.round() - v, v.clamp(-4, 3))
        grad_step = (slope * upstream).sum(dim=(0, 2)) / (3 * x.numel() / 5) ** 0.5
        expected = (
            upstream * inside,
            grad_step[:, None],
            (upstream * inside).sum(dim=(0, 1)),
            upstream.sum(dim=(0, 1)),
        )
        for leaf, grad in zip(leaves, expected):
            torch.testing.assert_close(leaf.grad, grad)

    def test_bounds_belong_to_the_inside(self):
        x = torch.tensor([-4.1, -4, 3, 3.1], requires_grad=True)
        lsq(x, torch.ones(1), -4, 3).sum().backward()
        assert x.grad.tolist() == [0, 1, 1, 0]

    def test_one_negative_batch_makes_the_codes_signed(self):
        quantizer = LSQQuantizer(8, (-1,), 1, signed=None)
        for batch in (torch.rand(4, 4) - 0.5, torch.rand(4, 4)):
            quantizer.reset()
            quantizer(batch)
        assert quantizer.bounds == (-128, 127)

    def test_first_batch_sets_the_steps_and_the_sign(self):
        positive = LSQQuantizer(8, (-1,), 1, signed=None)
        positive(torch.rand(4, 4))
        signed = LSQQuantizer(8, (-1,), 1, signed=None)
        signed(torch.rand(4, 4) - 0.5)
        assert (positive.bounds, signed.bounds) == ((0, 255), (-128, 127))
        step = positive.step.clone()
        positive(torch.rand(4, 4) - 3)
        assert torch.equal(positive.step, step)
        assert positive.bounds == (0, 255)

    def test_another_number_of_tokens_is_explained(self):
        quantizer = LSQQuantizer(4, (-1, 1), 7)
        with pytest.raises(ValueError, match=r"7 tokens and got 5.*act_granularity='tensor'"):
            quantizer(torch.randn(2, 5, 3))

    @pytest.mark.parametrize(
        ('build', 'skip', 'size'),
        [
            (tiny_vit, (), (48, 48)),
            (tiny_vit, ('patch_embed',), (48, 48)),
            # As many tokens as before, elsewhere
            (tiny_vit, ('patch_embed',), (16, 64)),
            (tiny_swin, ('patch_embed',), (64, 64)),
            (partial(tiny_swin, pad_small_map=True), ('patch_embed',), (16, 64)),
        ],
    )
    def test_another_image_size_is_explained(self, build, skip, size):
        model = build(quant_cfg={**W4A4, 'skip': skip})
        model.eval()
        run(model)
        image = torch.randn(2, 3, *size)
        message = rf"'token': the .* built for 32x32 pixels and got {size[0]}x{size[1]}.*'tensor'"
        with pytest.raises(ValueError, match=message):
            model(image)
        build(quant_cfg={**W4A4, 'act_granularity': 'tensor'})(image)

    def test_half_precision_inputs_are_quantized_in_float32(self):
        quantizer = LSQQuantizer(4, (-1, 1), 7)
        x = torch.randn(2, 7, 3).bfloat16()
        assert torch.equal(quantizer(x), quantizer(x.float()))
        assert quantizer(x).dtype == torch.float32


@pytest.mark.parametrize('bits', range(1, 9))
@pytest.mark.parametrize('length', [1, 7, 8, 13])
def test_packing_is_lossless_and_small(bits, length):
    codes = torch.randint(0, 2**bits, (3, length))
    packed = pack_codes(codes, bits)
    assert packed.shape == (3, -(-length * bits // 8))
    assert torch.equal(unpack_codes(packed, bits, length), codes.to(torch.uint8))


def test_packing_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match='0 to 4 do not fit into 2 unsigned bits'):
        pack_codes(torch.tensor([0, 4]), 2)
    with pytest.raises(ValueError, match='take 2 bytes a row, not 3'):
        unpack_codes(torch.zeros(1, 3, dtype=torch.uint8), 2, 8)


class TestSettings:
    @pytest.mark.parametrize(
        ('changes', 'message'),
        [
            (dict(type='LSQ'), "must be 'OFQ'"),
            (dict(w_bits=1), r'quant_cfg.w_bits must be 2 to 8.*got 1'),
            (dict(a_bits=9), r'quant_cfg.a_bits must be 2 to 8.*got 9'),
            (dict(bits=4), r"has no settings \['bits'\]"),
            (dict(w_quant='minmax'), 'w_quant must be one of'),
            (dict(act_granularity='row'), 'act_granularity must be one of'),
            (dict(overrides={'layers.0': dict(bits=4)}), r"\['bits'\]; it can hold"),
            (dict(overrides={'layers.0': 4}), r"\['layers.0'\] must be a dict of settings, got 4"),
            (dict(overrides={'layers.0': dict(edge_bits=4)}), 'edge_bits means nothing there'),
            (dict(overrides={'patch_embed': dict(w_bits=3)}), r"'patch_embed'.*w_bits means noth"),
            (dict(overrides={'*.proj': dict(qkr=False)}), r"'\*.proj'\]: qkr means nothing there"),
            (dict(qkr='no'), "qkr must be True or False, got 'no'"),
            (dict(skip='*'), r"skip must be a list of patterns, got '\*'"),
            (dict(skip=['blocks.0']), r"is called \['blocks.0'\]"),
            (dict(overrides={'blocks.*': dict(w_bits=8)}), r"is called \['blocks.\*'\]"),
        ],
    )
    def test_mistakes_are_named(self, changes, message):
        with pytest.raises(ValueError, match=message):
            tiny_vit({**W4A4, **changes})

    def test_bits_mix_by_pattern(self):
        model = tiny_vit(
            {
                **W4A4,
                'skip': ['layers.0.ffn'],
                'overrides': {
                    'layers.1.*': dict(w_bits=8, a_bits=8),
                    'layers.1.ffn.layers.1': dict(w_bits=2, a_bits=None),
                },
            }
        )
        first, last = model.layers
        assert first.attn.qkv.weight_quant.bits == first.attn.qkv.input_quant.bits == 4
        assert not isinstance(first.ffn.layers[1], QuantLinear)
        assert last.attn.proj.weight_quant.bits == last.attn.prob_quant.bits == 8
        assert last.ffn.layers[0][0].weight_quant.bits == 8
        assert last.ffn.layers[1].weight_quant.bits == 2
        assert isinstance(last.ffn.layers[1].input_quant, nn.Identity)
        assert run(model).isfinite().all()

    def test_edges_have_bits_of_their_own(self):
        overrides = {'patch_embed.projection': dict(edge_bits=6)}
        projection = tiny_vit({**W4A4, 'overrides': overrides}).patch_embed.projection
        assert projection.weight_quant.bits == projection.input_quant.bits == 6
        overrides = {'layers.head': dict(edge_bits=None)}
        layers = DistilledClsHead(5, 24, quant_cfg={**W4A4, 'overrides': overrides}).layers
        assert type(layers.head) is nn.Linear
        assert layers.head_dist.weight_quant.bits == 8

    def test_skipped_queries_and_keys_stay_with_their_softmax(self):
        first, last = tiny_vit({**W4A4, 'skip': ['layers.0.attn.qkv']}).layers
        assert type(first.attn.qkv) is nn.Linear
        assert not hasattr(first.attn, 'prob_quant')
        assert isinstance(first.attn.proj, QuantLinear)
        assert isinstance(last.attn.qkv, QKRProjection)

    @pytest.mark.parametrize(
        'changes', [dict(a_bits=None), dict(skip=['layers.*']), dict(w_bits=None, a_bits=None)]
    )
    def test_models_with_few_quantizers_run(self, changes):
        model = tiny_vit({**W4A4, **changes})
        assert isinstance(model.patch_embed.projection, QuantConv2d)
        assert run(model).isfinite().all()

    def test_settings_object_is_taken_as_it_is(self):
        assert OFQ.from_cfg(OFQ(w_bits=32)).w_bits is None


class TestConversion:
    @pytest.mark.parametrize('build', [tiny_vit, tiny_swin])
    def test_names_and_values_of_full_precision_stay(self, build):
        torch.manual_seed(1)
        plain = build(quant_cfg=None)
        state = plain.state_dict()
        model = build()
        check_fit(model, state)
        model.load_state_dict(state)
        own = model.state_dict()
        for name, value in state.items():
            assert torch.equal(own[name], value), name
        assert all(not quantizer.is_initialized for quantizer in quantizers_of(model))

    @pytest.mark.parametrize('build', [tiny_vit, tiny_swin])
    def test_quantized_checkpoints_restore_everything(self, build):
        model = build()
        model.eval()
        run(model)
        image = torch.randn(2, 3, 32, 32)
        other = build()
        check_fit(other, model.state_dict())
        # As MMEngine loads, too
        _load_checkpoint_to_model(other, {'state_dict': model.state_dict()}, strict=True)
        other.eval()
        assert torch.equal(model(image)[-1], other(image)[-1])

    def test_what_is_quantized(self):
        model = tiny_vit()
        attn, ffn = model.layers[0].attn, model.layers[0].ffn
        assert isinstance(model.patch_embed.projection, QuantConv2d)
        assert model.patch_embed.projection.weight_quant.bits == 8
        assert isinstance(attn.qkv, QKRProjection)
        assert attn.qkv.input_quant.step.shape == (17,)
        assert attn.qkv.key_quant.step.shape == (17 * 3,)
        assert attn.qkv.value_quant.step.shape == (24,)
        assert attn.prob_quant.bounds == ffn.layers[1].input_quant.bounds == (0, 15)
        assert ffn.layers[0][0].input_quant.bounds == (-8, 7)

    def test_head_has_edge_bits(self):
        head = DistilledClsHead(5, 24, quant_cfg={**W4A4, 'edge_bits': 6})
        for layer in (head.layers.head, head.layers.head_dist):
            assert layer.weight_quant.bits == layer.input_quant.bits == 6
            assert layer.weight_quant.step.shape == (5,)
            assert layer.input_quant.step.shape == (1,)
        scores = head(((torch.randn(2, 24), torch.randn(2, 24)),))
        assert scores.shape == (2, 5)

    @pytest.mark.parametrize(
        ('build', 'cfg'),
        [
            (tiny_vit, W4A4),
            (tiny_vit, {**W4A4, 'qkr': False, 'w_quant': 'lsq'}),
            (tiny_vit, {**W4A4, 'act_granularity': 'channel'}),
            (tiny_vit, {**W4A4, 'act_granularity': 'tensor', 'w_quant': 'lsq'}),
            (lambda cfg: tiny_vit(cfg, DistilledVisionTransformer), W4A4),
            (tiny_swin, W4A4),
            (tiny_swin, TENSOR),
            (lambda cfg: CaiT(ARCH, img_size=32, patch_size=8, quant_cfg=cfg), PLAIN),
            (lambda cfg: T2TViT('t2t-vit-7', img_size=32, quant_cfg=cfg), W4A4),
            (lambda cfg: PyramidVisionTransformer('tiny', img_size=32, quant_cfg=cfg), PLAIN),
            (lambda cfg: STViTSwin('tiny', img_size=224, quant_cfg=cfg), TENSOR),
            (lambda cfg: STViTDeiT(DEEP, img_size=32, patch_size=4, quant_cfg=cfg), TENSOR),
            (lambda cfg: HybridVisionTransformer(ARCH, img_size=32, quant_cfg=cfg), W4A4),
        ],
    )
    def test_gradients_reach_every_parameter(self, build, cfg):
        model = build(cfg)
        model.train()
        run(model, 224 if isinstance(model, STViTSwin) else 32).square().mean().backward()
        assert len(quantizers_of(model)) > 5
        assert all(quantizer.is_initialized for quantizer in quantizers_of(model))
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name

    def test_without_bits_qkr_is_attention_without_query_and_key_biases(self):
        """Order of heads and rows, seen from the outside."""
        plain = tiny_vit(quant_cfg=None).eval()
        for layer in plain.layers:
            nn.init.normal_(layer.attn.qkv.bias)
            layer.attn.qkv.bias.data[:48] = 0
        model = copy.deepcopy(plain)
        image = torch.randn(2, 3, 32, 32)
        reference = plain(image)[-1]
        # Weights of 8 bits would blur what is compared: quantizers that let everything pass.
        convert(model, dict(type='OFQ', w_bits=8, a_bits=8))
        for module in list(model.modules()):
            for name, _ in list(module.named_children()):
                if name.endswith('_quant'):
                    setattr(module, name, nn.Identity())
        torch.testing.assert_close(model(image)[-1], reference, rtol=1e-4, atol=1e-4)

    def test_eight_bits_stay_close_to_full_precision(self):
        plain = tiny_vit(quant_cfg=None).eval()
        for parameter in plain.parameters():
            if parameter.ndim > 1:
                nn.init.uniform_(parameter, -0.2, 0.2)
        model = tiny_vit({**W4A4, 'w_bits': 8, 'a_bits': 8}).eval()
        model.load_state_dict(plain.state_dict())
        image = torch.randn(4, 3, 32, 32)
        cosine = torch.cosine_similarity(model(image)[-1], plain(image)[-1])
        assert cosine.min() > 0.95

    def test_shift_after_the_keys_changes_nothing(self):
        model = tiny_vit().eval()
        image = torch.randn(2, 3, 32, 32)
        before = model(image)[-1]
        for layer in model.layers:
            nn.init.normal_(layer.attn.qkv.key_quant.shift_after)
        torch.testing.assert_close(model(image)[-1], before, rtol=1e-3, atol=1e-4)

    def test_weights_are_quantized_once_in_evaluation(self, monkeypatch):
        model = tiny_vit().eval()
        image = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            first = model(image)[-1]
            layer = model.layers[0].ffn.layers[0][0]
            calls = []
            monkeypatch.setattr(
                layer.weight_quant, 'forward', lambda w: calls.append(1) or statsq(w, 4)
            )
            model(image)
            assert not calls
            layer.weight.mul_(-1)
            assert not torch.equal(model(image)[-1], first)
            layer.weight.mul_(-1)
            assert torch.equal(model(image)[-1], first)
            assert len(calls) == 2

    def test_weights_made_in_inference_mode_may_change(self):
        with torch.inference_mode():
            model = tiny_vit().eval()
            image = torch.randn(2, 3, 32, 32)
            model(image)  # sets the steps
            first = model(image)[-1]
            model.layers[0].ffn.layers[0][0].weight.mul_(-1)
            assert not torch.equal(model(image)[-1], first)

    def test_steps_that_change_are_noticed_in_evaluation(self):
        model = tiny_vit({**W4A4, 'w_quant': 'lsq'}).eval()
        image = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            first = model(image)[-1]
            step = model.layers[0].ffn.layers[0][0].weight_quant.step
            step.mul_(3)
            assert not torch.equal(model(image)[-1], first)

    @pytest.mark.parametrize('training', [False, True])
    def test_compiles_without_graph_breaks(self, training):
        model = tiny_vit()
        image = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            model(image)
        model.train(training)
        with torch.set_grad_enabled(training):
            expected = model(image)[-1]
            found = torch.compile(model, fullgraph=True, backend='eager')(image)[-1]
        torch.testing.assert_close(found, expected)

    def test_steps_of_another_input_size_are_resized(self):
        model = tiny_vit(img_size=32).eval()
        run(model)
        nn.init.constant_(model.patch_embed.projection.input_quant.shift_before, 0.5)
        larger = tiny_vit(img_size=(48, 32)).eval()
        check_fit(larger, model.state_dict())
        larger.load_state_dict(model.state_dict())
        old = model.layers[0].attn.qkv.key_quant.step.view(17, 3)
        new = larger.layers[0].attn.qkv.key_quant.step.view(25, 3)
        assert torch.equal(old[0], new[0])
        assert new[1:].min() >= old[1:].min() - 1e-6
        assert new[1:].max() <= old[1:].max() + 1e-6
        shift = larger.patch_embed.projection.input_quant.shift_before
        assert shift.shape == (48 * 32,)
        torch.testing.assert_close(shift, torch.full_like(shift, 0.5))
        out = larger(torch.randn(1, 3, 48, 32))[-1]
        assert out.isfinite().all()

    @pytest.mark.parametrize(
        ('build', 'layer'),
        [
            (tiny_swin, 'stages.0.blocks.0.ffn.layers.0.0.input_quant'),
            (tiny_swin, 'stages.0.downsample.reduction.input_quant'),
            (partial(tiny_vit, with_cls_token=False, out_type='avg_featmap'), None),
        ],
    )
    def test_steps_without_extra_tokens_are_resized(self, build, layer):
        model, larger = build(img_size=32), build(img_size=64)
        with torch.no_grad():
            for quantizer in quantizers_of(model):
                for parameter in quantizer.parameters():
                    parameter.copy_(torch.linspace(1, 2, len(parameter)))
        check_fit(larger, model.state_dict())
        larger.load_state_dict(model.state_dict())
        quantizer = larger.get_submodule(layer or 'layers.0.attn.qkv.key_quant')
        steps = quantizer.step.view(-1, quantizer.steps_per_position)
        if layer:
            # Columns from left to right
            assert (steps.diff(dim=0) >= 0).all()
            assert (steps[0].item(), steps[-1].item()) == (1, 2)
        else:
            assert steps.shape == (64, 3)
        assert larger.patch_embed.projection.input_quant.shift_before.max() <= 2
        assert run(larger, 64).isfinite().all()

    def test_wrong_checkpoints_are_still_refused(self, tmp_path):
        other = tiny_vit(arch={**ARCH, 'embed_dims': 48})
        torch.save({'state_dict': other.state_dict()}, tmp_path / 'other.pth')
        with pytest.raises(CheckpointError, match='of another shape'):
            load_pretrained(tiny_vit(), str(tmp_path / 'other.pth'))

    def test_pretrained_full_precision_loads(self, tmp_path):
        plain = tiny_vit(quant_cfg=None)
        torch.save({'state_dict': plain.state_dict()}, tmp_path / 'plain.pth')
        model = tiny_vit()
        load_pretrained(model, str(tmp_path / 'plain.pth'))
        assert torch.equal(model.layers[1].attn.qkv.weight, plain.layers[1].attn.qkv.weight)

    def test_a_subclass_says_that_it_needs_the_decorator(self):
        class Custom(VisionTransformer):
            pass

        class Extended(VisionTransformer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)

        with pytest.raises(TypeError, match='decorate it with @quantizable'):
            tiny_vit(cls=Extended)
        with pytest.raises(TypeError, match='decorate it with @quantizable'):
            tiny_vit(cls=Custom)
        assert isinstance(tiny_vit(cls=quantizable(Extended)).layers[0].attn.qkv, QKRProjection)


class TestComposition:
    def test_token_fusion_refuses_steps_per_token(self):
        with pytest.raises(ValueError, match=r"token_fusion.*act_granularity='tensor'"):
            tiny_vit(token_fusion=dict(type='ToMe', r=2))

    @pytest.mark.parametrize('policy', [dict(type='ToMe', r=2), dict(type='MCTF', r=2)])
    @pytest.mark.parametrize('qkr', [True, False])
    def test_token_fusion_with_one_step_for_all(self, policy, qkr):
        model = tiny_vit({**TENSOR, 'qkr': qkr}, token_fusion=policy)
        model.train()
        run(model).square().mean().backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None]
        assert not missing

    def test_attention_between_two_sets_of_tokens_refuses(self):
        with pytest.raises(ValueError, match=r"quant_cfg.qkr=False and .*'tensor'"):
            STViTSwin('tiny', img_size=224, quant_cfg=W4A4)

    def test_attention_of_other_types_refuses_qkr(self):
        with pytest.raises(ValueError, match=r'CaiT has no query-key.*set quant_cfg.qkr=False'):
            CaiT(ARCH, img_size=32, patch_size=8, quant_cfg=W4A4)

    def test_the_convolution_that_sees_the_image_is_quantized(self):
        model = PyramidVisionTransformer('tiny', img_size=32, quant_cfg=PLAIN)
        assert isinstance(model.stages[0].projection, QuantConv2d)

    def test_jpm_refuses_steps_per_token(self):
        for cfg in (TENSOR, W4A4):
            backbone = dict(
                type='VisionTransformer', arch=ARCH, img_size=32, patch_size=8, quant_cfg=cfg
            )
            config = dict(
                type='ReIdentifier',
                backbone=backbone,
                head=dict(type='JPMHead', num_classes=4, in_channels=24),
            )
            if cfg is TENSOR:
                MODELS.build(config)
                continue
            with pytest.raises(ValueError, match=r"JPMHead .*act_granularity='tensor'"):
                MODELS.build(config)

    @pytest.mark.parametrize(
        'head',
        [
            dict(type='BNNeckHead'),
            dict(
                type='DCALHead',
                pwca=dict(),
                glca=dict(pool='mean', init='copy'),
                num_heads=3,
                feedforward_channels=48,
            ),
        ],
    )
    @pytest.mark.parametrize('qkr', [True, False])
    def test_re_id_models(self, head, qkr):
        model = MODELS.build(
            dict(
                type='ReIdentifier',
                backbone=dict(
                    type='VisionTransformer',
                    arch=ARCH,
                    img_size=(32, 16),
                    patch_size=8,
                    sie=dict(num_cameras=3),
                    quant_cfg={**W4A4, 'qkr': qkr},
                ),
                head=dict(num_classes=4, in_channels=24, **head),
            )
        )
        model.init_weights()
        model.train()
        samples = [
            DataSample(metainfo=dict(camera_id=i % 3)).set_gt_label(i // 2) for i in range(8)
        ]
        losses = model(torch.randn(8, 3, 32, 16), samples, mode='loss')
        loss, _ = model.parse_losses(losses)
        loss.backward()
        names = [n for n, p in model.backbone.named_parameters() if p.grad is None]
        assert not names
        model.eval()
        out = model(torch.randn(2, 3, 32, 16), samples[:2], mode='predict')
        assert out[0].feature.isfinite().all()

    def test_gradient_checkpointing_gives_the_same_gradients(self):
        image = torch.randn(2, 3, 32, 32)
        grads = []
        for with_cp in (False, True):
            torch.manual_seed(3)
            model = tiny_vit(with_cp=with_cp)
            model(image)
            model(image)[-1].square().mean().backward()
            grads.append(model.layers[0].attn.qkv.key_quant.step.grad)
        torch.testing.assert_close(*grads)


class TestConverter:
    @pytest.mark.parametrize('qkr', [True, False])
    def test_round_trip(self, qkr):
        cfg = {**W4A4, 'qkr': qkr}
        model = nn.Module()
        model.backbone = tiny_vit(cfg, DistilledVisionTransformer)
        model.head = DistilledClsHead(5, 24, quant_cfg=cfg)
        model.head(model.backbone(torch.randn(2, 3, 32, 32)))
        for layer in model.backbone.layers:
            nn.init.normal_(layer.attn.qkv.bias)
        state = model.state_dict()
        official = export_state_dict(state, 'ofq')
        assert 'blocks.1.mlp.fc2.input_quant_fn.s' in official
        back = convert_state_dict(official, 'ofq')
        assert back.keys() == state.keys()
        for name, value in back.items():
            expected = state[name]
            if qkr and name.endswith('qkv.bias'):
                value, expected = value[48:], expected[48:]
            assert torch.equal(value, expected), name

    def test_other_clips_are_refused(self):
        with pytest.raises(ValueError, match='clips at 2'):
            convert_state_dict({'blocks.0.mlp.fc1.statsq_fn.clip_val': torch.ones(1)}, 'ofq')


class TestOscillation:
    def test_distance_to_the_thresholds_that_there_are(self):
        # 2 bits: thresholds at -1.5, -0.5 and 0.5
        position = torch.tensor([-2.5, -1.5, -0.4, 0.2, 0.5, 1.5])
        expected = torch.tensor([torch.inf, 0, 0.1, 0.3, 0, torch.inf])
        torch.testing.assert_close(threshold_distance(position, 2), expected)

    @pytest.mark.parametrize('boundary_range', [0.01, 0.2])
    def test_band_of_a_row(self, boundary_range):
        model = tiny_vit()
        run(model)
        monitor = OscillationMonitor(model, boundary_range=boundary_range)
        monitor.update()
        weight = model.layers[0].ffn.layers[0][0].weight
        expected = cga_free_mask(weight, 4, boundary_range).float().mean().item()
        found = monitor.summary()['layers.0.ffn.layers.0.0']['band']
        assert found == pytest.approx(expected, abs=2e-3)
        assert 0 < found < 0.5

    def test_alternating_codes(self):
        tracker = OscillationTracker(momentum=0.1)
        for step in range(30):
            tracker.update(torch.tensor([step % 2, step, 5]))
        expected = 1 - (1 - 0.1) ** (30 - 2)
        torch.testing.assert_close(tracker.frequency, torch.tensor([expected, 0.0, 0.0]))
        assert tracker.total.tolist() == [28, 0, 0]

    def test_monitor_counts_all_low_bit_weights(self):
        model = tiny_vit()
        run(model)
        monitor = OscillationMonitor(model, momentum=0.5)
        monitor.update()
        weight = model.layers[0].ffn.layers[0][0].weight
        for _ in range(3):
            weight.data.neg_()
            monitor.update()
        summary = monitor.summary()
        assert summary['layers.0.ffn.layers.0.0']['frac'] > 0.99
        assert summary['layers.1.ffn.layers.0.0']['frac'] == 0
        assert 'layers.0.attn.qkv.product' in summary
        assert 0 < summary['total']['frac'] < 0.3

    def test_full_precision_is_refused(self):
        with pytest.raises(ValueError, match='no quantized weights'):
            OscillationMonitor(tiny_vit(quant_cfg=None))


class TestAnnealing:
    @pytest.mark.parametrize('on_qk', ['none', 'grad'])
    def test_confident_weights_stay_bit_for_bit(self, on_qk):
        model = tiny_vit({**W4A4, 'w_bits': 3})
        run(model)
        annealing = ConfidenceGuidedAnnealing(model, 0.05, on_qk)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        run(model).square().mean().backward()
        optimizer.step()  # momentum
        optimizer.zero_grad()
        annealing.attach(optimizer)
        for _ in range(2):
            masks = [weight.free(0.05) for weight in annealing.weights]
            before = [weight.parameter.detach().clone() for weight in annealing.weights]
            run(model).square().mean().backward()
            run(model).square().mean().backward()
            for weight, free in zip(annealing.weights, masks):
                assert not weight.parameter.grad[~free].any()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
            for weight, free, value in zip(annealing.weights, masks, before):
                moved = weight.parameter.detach() != value
                assert not (moved & ~free).any(), weight.name
                assert moved.any(), weight.name
        annealing.detach()
        before = annealing.weights[0].parameter.detach().clone()
        run(model).square().mean().backward()
        optimizer.step()
        assert (annealing.weights[0].parameter != before).float().mean() > 0.9
        assert all(layer.attn.qkv.product_quant.boundary_range is None for layer in model.layers)

    def test_only_the_gradient_of_the_product_depends_on_the_option(self):
        grads = {}
        image = torch.randn(2, 3, 32, 32)
        for on_qk in ('none', 'grad'):
            torch.manual_seed(5)
            model = tiny_vit()
            model(image)
            annealing = ConfidenceGuidedAnnealing(model, 0.05, on_qk)
            annealing.attach(torch.optim.SGD(model.parameters(), lr=0.1))
            model(image)[-1].square().mean().backward()
            grads[on_qk] = model.layers[1].attn.qkv.weight.grad.split(24)
        assert not torch.equal(grads['none'][0], grads['grad'][0])
        assert torch.equal(grads['none'][2], grads['grad'][2])

    def test_mistakes_are_named(self):
        with pytest.raises(ValueError, match='no weights that StatsQ quantizes'):
            ConfidenceGuidedAnnealing(tiny_vit(quant_cfg={**W4A4, 'w_quant': 'lsq'}))
        with pytest.raises(ValueError, match='boundary_range must be between'):
            ConfidenceGuidedAnnealing(tiny_vit(), 0.7)
        with pytest.raises(ValueError, match='on_qk must be one of'):
            ConfidenceGuidedAnnealing(tiny_vit(), on_qk='mask')
