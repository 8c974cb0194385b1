import pytest
import torch

from vitdown.converters import convert_state_dict, export_state_dict
from vitdown.engine.complexity import get_flops
from vitdown.models.backbones import HybridVisionTransformer, VisionTransformer
from vitdown.models.layers import MultiheadAttention, infer_grid, resize_pos_embed

TINY = dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=48)


def tiny_vit(**kwargs) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(**{'arch': TINY, 'img_size': (32, 16), 'patch_size': 8, **kwargs})
    model.init_weights()
    return model.eval()


@pytest.mark.parametrize(
    ('arch', 'img_size', 'params', 'gmacs'),
    [
        # TransReID/DCAL cost tables: backbone without classifier
        ('deit-tiny', (256, 128), 5_511_360, 0.780),
        ('deit-small', (256, 128), 21_639_552, 2.930),
        ('vit-base', (256, 128), 85_746_432, 11.339),
        ('vit-base', (256, 256), 85_844_736, 23.197),
        ('deit-tiny', (448, 448), 5_637_312, 7.122),
    ],
)
def test_cost_matches_the_published_tables(arch, img_size, params, gmacs):
    model = VisionTransformer(arch, img_size=img_size)
    cost = get_flops(model, (3, *img_size))
    assert cost.params == params
    assert cost.macs / 1e9 == pytest.approx(gmacs, rel=5e-3)


def test_vit_small_is_the_early_timm_model():
    model = VisionTransformer('vit-small', img_size=32)
    layer = model.layers[0]
    assert len(model.layers) == 8
    assert layer.attn.qkv.bias is None
    assert layer.attn.scale == 768**-0.5
    assert layer.ffn.feedforward_channels == 3 * 768


@pytest.mark.parametrize(
    ('img_size', 'stride', 'grid'),
    [
        ((256, 128), 16, (16, 8)),
        ((256, 128), 12, (21, 10)),
        ((256, 256), 12, (21, 21)),
        ((384, 128), 16, (24, 8)),
        ((256, 128), 11, (22, 11)),
    ],
)
def test_overlapping_patches(img_size, stride, grid):
    model = VisionTransformer(
        {**TINY, 'num_layers': 1}, img_size=img_size, patch_size=16, stride=stride
    )
    assert tuple(model.patch_resolution) == grid
    assert model.pos_embed.shape[1] == grid[0] * grid[1] + 1
    assert model(torch.rand(1, 3, *img_size))[-1].shape == (1, 24)


@pytest.mark.parametrize(
    ('out_type', 'shape'),
    [
        ('cls_token', (2, 24)),
        ('raw', (2, 9, 24)),
        ('featmap', (2, 24, 4, 2)),
        ('avg_featmap', (2, 24)),
    ],
)
def test_out_types(out_type, shape):
    outs = tiny_vit(out_type=out_type, out_indices=[0, -1])(torch.rand(2, 3, 32, 16))
    assert [tuple(out.shape) for out in outs] == [shape, shape]


def test_other_input_sizes_than_the_configured_one():
    model = tiny_vit()
    assert model(torch.rand(1, 3, 48, 32))[-1].shape == (1, 24)


def test_tokens_and_attention_agree_with_the_output_tuple():
    model = tiny_vit()
    image = torch.rand(2, 3, 32, 16)
    feats = model.forward_tokens(image, need_attention=True)
    torch.testing.assert_close(feats.normed_tokens[:, 0], model(image)[-1])
    assert feats.patch_resolution == (4, 2)
    assert len(feats.attentions) == 3
    for attention in feats.attentions:
        assert attention.shape == (2, 9, 9)
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 9))
    last, _ = model.layers[-1](feats.last_layer_input)
    torch.testing.assert_close(last, feats.tokens)
    assert model.forward_tokens(image).attentions is None


def test_last_layer_input_of_a_single_layer_model_is_the_embedding():
    model = tiny_vit(arch={**TINY, 'num_layers': 1})
    image = torch.rand(2, 3, 32, 16)
    embedding, _ = model.embed_patches(image)
    torch.testing.assert_close(model.forward_tokens(image).last_layer_input, embedding)


def test_fused_attention_equals_the_explicit_softmax():
    torch.manual_seed(0)
    attn = MultiheadAttention(24, 3, qk_scale=0.3).eval()
    x, bias = torch.rand(2, 5, 24), torch.rand(2, 1, 1, 5)
    fused, _ = attn(x, bias)
    explicit, weights = attn(x, bias, need_weights=True)
    torch.testing.assert_close(fused, explicit)
    assert weights.shape == (2, 3, 5, 5)
    assert not torch.allclose(fused, attn(x)[0])


def test_gradient_checkpointing_changes_nothing():
    image = torch.rand(2, 3, 32, 16)
    grads = []
    for with_cp in (False, True):
        model = tiny_vit(with_cp=with_cp).train()
        model(image)[-1].sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert grad is not None, name
        torch.testing.assert_close(grad, grads[1][name])


def test_drop_path_is_stochastic_in_training_only():
    model = tiny_vit(drop_path_rate=0.5)
    image = torch.rand(8, 3, 32, 16)
    torch.testing.assert_close(model(image)[-1], model(image)[-1])
    model.train()
    assert not torch.allclose(model(image)[-1], model(image)[-1])
    rates = [layer.attn.out_drop.drop_prob for layer in model.layers]
    assert rates == pytest.approx([0.0, 0.25, 0.5])


@pytest.mark.parametrize('need_attention', [False, True])
def test_compiles_without_graph_breaks(need_attention):
    model = tiny_vit()
    image = torch.rand(2, 3, 32, 16)

    def run(x):
        feats = model.forward_tokens(x, need_attention=need_attention)
        return feats.normed_tokens, feats.attentions

    compiled = torch.compile(run, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(image), run(image))
    forward = torch.compile(model, backend='eager', fullgraph=True)
    torch.testing.assert_close(forward(image), model(image))


def test_mixed_precision_stays_close():
    model = tiny_vit()
    image = torch.rand(2, 3, 32, 16)
    with torch.autocast('cpu', torch.bfloat16):
        half = model(image)[-1]
    torch.testing.assert_close(half.float(), model(image)[-1], atol=0.05, rtol=0.05)


def test_sie_moves_every_token_by_its_camera_and_view():
    model = tiny_vit(sie=dict(num_cameras=3, num_views=2, coefficient=2.0))
    image = torch.rand(1, 3, 32, 16).expand(2, -1, -1, -1)
    tokens, _ = model.embed_patches(image, [0, 2], [1, 0])
    difference = tokens[1] - tokens[0]
    expected = 2.0 * (model.sie.embed[2 * 2 + 0] - model.sie.embed[0 * 2 + 1])
    torch.testing.assert_close(difference, expected.expand(9, -1))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(), 'no camera ids'),
        (dict(camera_ids=[0, 3]), r'cameras 0\.\.2, the input has \[3\]'),
        (dict(camera_ids=[-1, 0]), r'the input has \[-1\]'),
    ],
)
def test_sie_refuses_unknown_cameras(kwargs, message):
    model = tiny_vit(sie=dict(num_cameras=3))
    with pytest.raises(ValueError, match=message):
        model(torch.rand(2, 3, 32, 16), **kwargs)


def test_sie_weighs_three_by_default():
    assert tiny_vit(sie=dict(num_cameras=2)).sie.coefficient == 3.0


def test_sie_of_one_camera_works():
    model = tiny_vit(sie=dict(num_cameras=1))
    assert model(torch.rand(1, 3, 32, 16), camera_ids=[0])[-1].shape == (1, 24)


def test_frozen_stages_stay_frozen_in_training():
    model = tiny_vit(frozen_stages=2, drop_path_rate=0.5).train()
    assert not model.layers[0].training
    assert not any(p.requires_grad for p in model.layers[1].parameters())
    assert all(p.requires_grad for p in model.layers[2].parameters())


def test_position_embedding_of_another_size_is_resized_on_load():
    small, large = tiny_vit(), tiny_vit(img_size=(64, 32))
    large.load_state_dict(small.state_dict())
    expected = resize_pos_embed(small.pos_embed, (8, 4), (4, 2))
    torch.testing.assert_close(large.pos_embed, expected)


@pytest.mark.parametrize(
    ('num_patches', 'target', 'grid'),
    [(196, (16, 8), (14, 14)), (128, (24, 12), (16, 8)), (6, (9, 6), (3, 2))],
)
def test_grid_of_a_checkpoint(num_patches, target, grid):
    assert infer_grid(num_patches, target) == grid


def test_grid_that_cannot_be_told_is_an_error():
    with pytest.raises(ValueError, match='Cannot tell the patch grid'):
        infer_grid(130, (16, 8))


def test_unknown_arch_is_refused():
    with pytest.raises(ValueError, match="Unknown arch 'deit-huge'"):
        VisionTransformer('deit-huge')


def test_vit_on_a_resnet_is_that_of_timm():
    import timm

    torch.manual_seed(0)
    options = dict(embed_dim=24, depth=2, num_heads=3, img_size=64, num_classes=5)
    reference = timm.create_model('vit_base_r50_s16_224', **options).eval()
    arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=96)
    model = HybridVisionTransformer(arch, img_size=64).eval()
    weights = reference.state_dict()
    converted = convert_state_dict(weights, 'timm-hybrid')
    own = {k.removeprefix('backbone.'): v for k, v in converted.items() if 'backbone.' in k}
    model.init_weights()
    model.load_state_dict(own)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = reference.forward_features(images)
        torch.testing.assert_close(model.forward_tokens(images).normed_tokens, expected)
    assert model.forward_tokens(torch.rand(2, 3, 64, 48)).patch_resolution == (4, 3)
    back = export_state_dict(converted, 'timm-hybrid')
    assert back.keys() == {key for key in weights if not key.startswith('head.')}


@pytest.mark.parametrize('wrong', [dict(patch_size=8), dict(stride=12), dict(depths=(3, 4))])
def test_patches_of_a_resnet_are_fixed(wrong):
    with pytest.raises(ValueError, match='patches of 16 pixels from three stages'):
        HybridVisionTransformer(**wrong)
