"""STViT and STViT-R: sizes, masks, invariants, composition and messages."""

import copy

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from torch import nn

from benchmarks.stvit_unfolded import use_unfolded_form
from vitdown.checkpoint import check_fit
from vitdown.engine.complexity import get_flops
from vitdown.models.backbones import STViTDeiT, STViTSwin, SwinTransformer
from vitdown.models.layers import (
    RegionPooling,
    SemanticLayout,
    SemanticTokenGenerator,
    SemanticTokenRecovery,
)
from vitdown.models.layers.semantic_pooling import regions_fit
from vitdown.registry import MODELS

TINY = dict(embed_dims=8, depths=[1, 1, 6, 1], num_heads=[1, 1, 2, 4])
DEIT = dict(embed_dims=24, num_layers=6, num_heads=3, feedforward_channels=48)
STAGES = (0, 1, 2, 3)


def swin(**kwargs):
    """A small backbone whose weights make every layer matter."""
    model = STViTSwin(**{'arch': TINY, 'out_indices': STAGES, 'drop_path_rate': 0.0, **kwargs})
    return randomise(model).eval()


def deit(**kwargs):
    options = {'arch': DEIT, 'img_size': 32, 'patch_size': 4, 'num_base': 2, **kwargs}
    return randomise(STViTDeiT(**options)).eval()


def randomise(model):
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        values = torch.rand(parameter.shape, generator=generator)
        parameter.data = values + 0.5 if 'gamma' in name else (values - 0.5) * 0.6
    return model


def num_parameters(model):
    return sum(p.numel() for p in model.parameters())


# Figures of the paper and of the released code


@pytest.mark.parametrize(
    ('arch', 'classifier', 'dense', 'macs'),
    [
        ('tiny', 28_320_214, 27_552_558, 3.54),
        ('small', 49_625_518, 48_857_862, 5.64),
        ('base', 87_812_336, 86_789_128, 9.93),
    ],
)
def test_released_classifiers_have_their_size(arch, classifier, dense, macs):
    """Parameters as published; multiply-adds below those published, as nothing is done twice."""
    model = STViTSwin(arch, key_mode='released_cls').to('meta')
    width = model.num_features[-1]
    assert num_parameters(model) + 1000 * width + 1000 == classifier
    cost = get_flops(model, (3, 224, 224)).macs + 1000 * width
    assert cost / 1e9 == pytest.approx(macs, rel=4e-3)
    assert num_parameters(STViTSwin(arch, out_indices=STAGES)) == dense


@pytest.mark.parametrize(
    ('arch', 'limit', 'swin_macs'), [('small', 131, 187.6), ('base', 227, 331.1)]
)
def test_dense_backbones_save_what_the_paper_reports(arch, limit, swin_macs):
    """More than 30 % of Swin's multiply-adds on an image of 800x1280."""
    model = STViTSwin(arch, out_indices=STAGES).to('meta')
    cost = get_flops(model, (3, 800, 1280)).macs / 1e9
    assert cost <= limit
    assert cost < 0.7 * swin_macs


@pytest.mark.parametrize(
    ('arch', 'num_semantic', 'reported'),
    [('tiny', 3, 3.14), ('small', 3, 5.95), ('base', 3, 10.48), ('tiny', 4, 3.461)],
)
def test_stvit_swin_costs_what_is_reported(arch, num_semantic, reported):
    """With the norms and the repeated projections that the reported figures count."""
    model = STViTSwin(arch, recover=False, key_mode='released_cls', num_semantic=num_semantic).to(
        'meta'
    )
    width = model.num_features[-1]
    repeated = 3 * 14 * 14 * (width // 2) * width
    cost = get_flops(model, (3, 224, 224)).macs + 1000 * width + repeated
    assert cost / 1e9 == pytest.approx(reported, rel=8e-3)


@pytest.mark.parametrize(
    ('options', 'macs'),
    [
        (dict(arch='deit-tiny'), 0.522),
        (dict(arch='deit-small'), 1.907),
        (dict(arch='deit-base'), 7.263),
        (dict(num_generation=3), 1.967),
        (dict(num_generation=4), 2.027),
        (dict(num_base=3), 1.559),
        (dict(num_base=8), 3.298),
    ],
)
def test_stvit_deit_costs_what_the_paper_reports(options, macs):
    with torch.device('meta'):
        model = STViTDeiT(**options)
    cost = get_flops(model, (3, 224, 224)).macs + 1000 * model.embed_dims
    assert cost / 1e9 == pytest.approx(macs, rel=2e-3)


def test_stvit_deit_small_parameters():
    with torch.device('meta'):
        model = STViTDeiT('deit-small')
    assert num_parameters(model) + 385 * 1000 == 22_061_032


# Any size, any mask


@pytest.mark.parametrize('size', [(64, 96), (70, 118), (97, 203), (256, 128), (224, 224), (8, 40)])
@pytest.mark.parametrize('pad_mask', ['exact', 'official', False])
def test_any_input_size(size, pad_mask):
    model = swin(pad_mask=pad_mask)
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        outs = model(images)
        alone = model(images[1:])
    sizes = [size]
    for out, single, channels, factor in zip(outs, alone, (8, 16, 32, 64), (4, 2, 2, 2)):
        sizes.append(tuple(-(-side // factor) for side in sizes[-1]))
        assert out.shape == (2, channels, *sizes[-1])
        assert out.isfinite().all()
        # The other image of the batch doesn't matter.
        torch.testing.assert_close(out[1:], single, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('size', [(224, 224), (70, 118), (448, 230), (64, 300), (112, 210)])
@pytest.mark.parametrize('pad_mask', ['official', False])
def test_equals_the_released_form(size, pad_mask):
    """Also on maps where the recovery doesn't see the whole image."""
    model = swin(pad_mask=pad_mask, recover_key_window=9)
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        expected = use_unfolded_form(copy.deepcopy(model))(images)
        for out, reference in zip(model(images), expected):
            torch.testing.assert_close(out, reference, rtol=1e-3, atol=1e-3)


def test_official_mask_masks_nothing_without_padding():
    images = torch.rand(1, 3, 112, 224)
    with torch.no_grad():
        outs = [swin(pad_mask=mask)(images)[-1] for mask in ('official', False, 'exact')]
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(outs[0], outs[2], rtol=1e-3, atol=1e-3)


SIZES = [(10, 17), (14, 14), (16, 8), (5, 30)]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('own_keys', [False, True])
def test_exact_generation_sees_only_real_tokens(size, own_keys):
    """Against a loop over windows, with keys listed one by one."""
    layer = SemanticTokenGenerator(12, 2, 24, reach=11, with_own_keys=own_keys)
    randomise(layer).eval()
    layout = SemanticLayout(*size)
    image = torch.rand(1, size[0] * size[1], 12)
    semantic = torch.rand(1, layout.grid[0] * layout.grid[1] * 9, 12)
    out = layout.split(layer(semantic, image, layout))
    cells = image[0].unflatten(0, size)
    visible = layout.semantic_mask(image.device)
    visible = torch.ones(semantic.shape[1]).bool() if visible is None else visible
    visible = layout.split(visible[None, :, None])[..., 0]
    windows = [(i, j) for i in range(layout.grid[0]) for j in range(layout.grid[1])]
    for number, (i, j) in enumerate(windows):
        queries = layout.split(semantic)[number]
        keys = cells[max(0, 7 * i - 2) : 7 * i + 9, max(0, 7 * j - 2) : 7 * j + 9].flatten(0, 1)
        if own_keys:
            keys = torch.cat((queries[visible[number]], keys))
        query = layer.attn.project_q(layer.ln1(queries)[None])
        mixed, _ = layer.attn.mix(query, *layer.attn.project_kv(layer.ln1(keys)[None]))
        x = queries + layer.attn.project_out(mixed)[0]
        torch.testing.assert_close(out[number], layer.ffn(layer.ln2(x), identity=x))


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('reach', [3, 9, None])
def test_exact_recovery_sees_only_real_tokens(size, reach):
    layer = randomise(SemanticTokenRecovery(12, 2, 24, reach=reach)).eval()
    layout = SemanticLayout(*size)
    image = torch.rand(1, size[0] * size[1], 12)
    semantic = torch.rand(1, layout.grid[0] * layout.grid[1] * 9, 12)
    out = layer(image, semantic, layout)[0].unflatten(0, size)
    mask = layout.semantic_mask(image.device)
    mask = torch.ones(semantic.shape[1]).bool() if mask is None else mask
    mask = mask.unflatten(0, layout.semantic_size)
    tokens = semantic[0].unflatten(0, layout.semantic_size)
    margin = 99 if reach is None else (reach - 3) // 2
    for i in range(size[0]):
        for j in range(0, size[1], 3):
            top, left = i // 7 * 3, j // 7 * 3
            rows = slice(max(0, top - margin), top + 3 + margin)
            columns = slice(max(0, left - margin), left + 3 + margin)
            keys = tokens[rows, columns][mask[rows, columns]]
            x = image[0].unflatten(0, size)[i, j][None]
            query = layer.attn.project_q(layer.ln1(x)[None])
            mixed, _ = layer.attn.mix(query, *layer.attn.project_kv(layer.ln1(keys)[None]))
            x = x + layer.attn.project_out(mixed)[0]
            torch.testing.assert_close(out[i, j][None], layer.ffn(layer.ln2(x), identity=x))


def test_exact_pooling_ignores_padding():
    layout = SemanticLayout(8, 3)
    pooled = layout.pool(-torch.rand(1, 24, 4) - 1)
    mask = layout.semantic_mask(pooled.device)
    # Rows 0-7 of 14: bins [0, 3), [2, 5), [4, 7), [7, 10) hold some; columns 0-2: the first two.
    assert mask.unflatten(0, (6, 3)).tolist() == [[True, True, False]] * 4 + [[False] * 3] * 2
    assert (pooled[0, mask] <= -1).all()
    assert (pooled[0, ~mask] == 0).all()
    assert (SemanticLayout(8, 3, pad_mask=False).pool(-torch.ones(1, 24, 4)) == 0).any()


def test_split_and_join_are_inverse():
    layout = SemanticLayout(20, 9, window=5, num_semantic=2)
    tokens = torch.rand(2, 4 * 2 * 4, 3)
    windows = layout.split(tokens)
    torch.testing.assert_close(layout.join(windows), tokens)
    torch.testing.assert_close(windows[0], tokens[0].unflatten(0, (8, 4))[:2, :2].flatten(0, 1))


# Training


@pytest.mark.parametrize(
    'model',
    [
        swin(),
        swin(key_mode='released_cls', img_size=224, use_global_center=True, conv_pos=True,
             relative_pos=True),
        swin(recover=False, key_mode='released_cls', out_indices=(0, 1, 2, 3)),
        deit(use_global_center=True, layer_scale_init_value=0.1),
    ],
    ids=['dense', 'classifier', 'compressed', 'deit'],
)  # fmt: skip
def test_gradients_reach_every_parameter(model):
    model = copy.deepcopy(model).train()
    outs = model(torch.rand(2, 3, 224, 224))
    generator = torch.Generator().manual_seed(0)
    sum((out * torch.rand(out.shape, generator=generator)).sum() for out in outs).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_gradient_of_a_single_image():
    """Batch norm in eval mode passes a right gradient on, whichever stage asks for it."""
    model = swin(out_indices=(0,)).double()
    image = torch.rand(1, 3, 24, 32, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(1, 8, 6, 8, dtype=torch.float64)
    direction = torch.rand_like(image)

    def loss(x):
        return (model(x)[0] * weights).sum()

    (gradient,) = torch.autograd.grad(loss(image), image)
    with torch.no_grad():
        slope = (loss(image + 1e-6 * direction) - loss(image - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('make', [swin, deit])
@pytest.mark.filterwarnings('ignore:torch.utils.checkpoint')
def test_recomputation_changes_nothing(make):
    images = torch.rand(1, 3, 32, 48)
    gradients = []
    for with_cp in (False, True):
        model = make(with_cp=with_cp).train()
        model(images)[-1].square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize('frozen', [-1, 0, 2])
def test_frozen_stages(frozen):
    model = swin(frozen_stages=frozen).train()
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    parts = ['patch_embed', *(f'stages.{i}' for i in range(4))]
    for number, part in enumerate(parts):
        is_frozen = frozen >= max(0, number - 1)
        assert any(name.startswith(part) for name in trains) != is_frozen, part
        assert model.get_submodule(part).training != is_frozen, part
    statistics = model.patch_embed.projection[0].bn.running_mean.clone()
    model(torch.rand(2, 3, 32, 32))
    same = torch.equal(statistics, model.patch_embed.projection[0].bn.running_mean)
    assert same == (frozen >= 0)


@pytest.mark.parametrize('indices', [(3,), (0, 2), (1,)])
def test_out_indices(indices):
    everything = swin()
    some = swin(out_indices=indices)
    some.load_state_dict(everything.state_dict(), strict=False)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = everything(images)
        for index, out in zip(indices, some(images)):
            torch.testing.assert_close(out, expected[index])


@torch.no_grad()
def test_the_baseline_may_have_the_same_stem():
    arch = dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 4])
    model, other = SwinTransformer(arch, conv_stem=True, pad_small_map=True), STViTSwin(TINY)
    other.patch_embed.load_state_dict(model.patch_embed.state_dict())
    images = torch.rand(2, 3, 50, 64)
    model.eval()
    expected, size = other.eval().patch_embed(images)
    found, same = model.patch_embed(images)
    assert torch.equal(found, expected)
    assert tuple(size) == tuple(same)
    assert model(images)[0].shape == (2, 64, 2, 2)
    with pytest.raises(ValueError, match='conv_stem must be True or False'):
        SwinTransformer(arch, conv_stem='yes')
    with pytest.raises(ValueError, match='leave out patch_size and patch_cfg'):
        SwinTransformer(arch, conv_stem=True, patch_size=2)


def test_stem_can_be_fused():
    model, images = swin(), torch.rand(2, 3, 40, 56)
    with torch.no_grad():
        expected = model(images)
        outs = fuse_conv_bn(copy.deepcopy(model))(images)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fuse_conv_bn(model).modules())
    for out, reference in zip(outs, expected):
        torch.testing.assert_close(out, reference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('pad_mask', ['exact', 'official'])
def test_mixed_precision(pad_mask):
    """Also where the released mask of -1000 hides everything and would ruin the scores."""
    model, image = swin(pad_mask=pad_mask), torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = model(image)
        with torch.autocast('cpu', torch.bfloat16):
            outs = model(image)
    for out, reference in zip(outs, expected):
        similarity = torch.cosine_similarity(out.float().flatten(1), reference.flatten(1))
        assert similarity > 0.999


@pytest.mark.parametrize(
    'make',
    [
        lambda: swin(pad_mask='exact'),
        lambda: swin(pad_mask='official'),
        lambda: swin(recover=False, out_indices=(3,)),
        deit,
    ],
    ids=['exact', 'official', 'compressed', 'deit'],
)
def test_compiles_without_graph_breaks(make):
    model, images = make(), torch.rand(1, 3, 70, 118)
    with torch.no_grad():
        outs = torch.compile(model, backend='eager', fullgraph=True)(images)
        torch.testing.assert_close(outs, model(images))


@pytest.mark.parametrize(('recover', 'layer'), [(True, 2), (False, 3)])
def test_global_centres_have_the_depth_of_their_layer(recover, layer):
    options = dict(key_mode='released_cls', use_global_center=True, out_indices=(3,))
    model = swin(recover=recover, **options)
    depth = model.get_layer_depth('stages.2.global_center')
    assert depth == model.get_layer_depth(f'stages.2.blocks.{layer}.ln1.weight')


@pytest.mark.parametrize('conv_stem', [False, True])
def test_the_baseline_starts_alike(conv_stem):
    model = SwinTransformer(dict(TINY, depths=[1, 1, 1, 1]), conv_stem=conv_stem)
    model.init_weights()
    attn = model.stages[3].blocks[0].attn.w_msa
    assert attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert (attn.qkv.bias == 0).all()
    assert attn.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.2)


def test_initial_weights():
    model = STViTSwin(TINY, key_mode='released_cls', use_global_center=True)
    model.init_weights()
    block = model.stages[2].blocks[1]
    assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert (block.attn.qkv.bias == 0).all()
    assert (block.attn.gamma1.weight == 1e-5).all()
    assert model.stages[2].global_center.std().item() == pytest.approx(0.02, rel=0.2)


# Composition


@pytest.mark.parametrize(
    ('backbone', 'width'),
    [
        (dict(type='STViTSwin', arch=TINY, img_size=(64, 32)), 64),
        (dict(type='STViTSwin', arch=TINY, img_size=(64, 32), recover=False), 64),
        (dict(type='STViTDeiT', arch=DEIT, img_size=(64, 32), patch_size=8, num_base=2,
              semantic_grid=(4, 2), sie=dict(num_cameras=3)), 24),
    ],
    ids=['recover', 'compressed', 'deit'],
)  # fmt: skip
def test_re_identification(backbone, width):
    from mmpretrain.structures import DataSample

    model = MODELS.build(
        dict(
            type='ReIdentifier',
            backbone=backbone,
            head=dict(type='BNNeckHead', num_classes=4, in_channels=width),
        )
    )
    samples = [DataSample() for _ in range(8)]
    for i, sample in enumerate(samples):
        sample.set_gt_label(i // 2)
        sample.set_metainfo(dict(camera_id=i % 3))
    losses = model(torch.rand(8, 3, 64, 32), samples, mode='loss')
    sum(losses.values()).backward()
    assert model.eval()(torch.rand(1, 3, 72, 40), samples[:1]).shape == (1, width)


@pytest.mark.parametrize('head', ['JPMHead', 'DCALHead'])
def test_heads_on_tokens_are_refused(head):
    backbone = dict(type='STViTDeiT', arch=DEIT, img_size=32, patch_size=8, num_base=2)
    with pytest.raises(TypeError, match='works on tokens, which STViTDeiT does not offer'):
        MODELS.build(
            dict(
                type='ReIdentifier',
                backbone=backbone,
                head=dict(type=head, num_classes=4, in_channels=24),
            )
        )


@pytest.mark.parametrize(
    ('out_type', 'shapes'),
    [
        ('featmap', [(2, 24, 8, 8), (2, 24, 4, 4)]),
        ('raw', [(2, 64, 24), (2, 16, 24)]),
        ('avg_featmap', [(2, 24), (2, 24)]),
    ],
)
def test_out_types_of_deit(out_type, shapes):
    model = deit(out_type=out_type, out_indices=(1, 5))
    assert [tuple(out.shape) for out in model(torch.rand(2, 3, 32, 32))] == shapes


@pytest.mark.parametrize('pool', ['intra', 'max', 'avg'])
@pytest.mark.parametrize('size', [(14, 14), (8, 8), (5, 9), (16, 8)])
def test_pooling_in_regions(pool, size):
    """Constant maps stay as they are: padding has no weight."""
    module = RegionPooling(6, (4, 4), pool)
    value = torch.rand(6) + 1
    out = module(value.expand(2, size[0] * size[1], 6), size)
    assert out.shape == (2, 16, 6)
    covered = out.abs().sum(dim=-1) > 1e-3
    torch.testing.assert_close(out[covered], value.expand(out.shape)[covered])
    empty = 4 if size[0] == 5 else 0  # 5 rows in 4 regions of 2, padded 1 + 2
    assert (~covered).sum() == 2 * empty


def test_compressed_stage_works_on_any_size():
    model = swin(recover=False, out_indices=(1, 2, 3))
    shapes = [tuple(x.shape[1:]) for x in model(torch.rand(1, 3, 256, 128))]
    assert shapes == [(16, 32, 16), (32, 9, 6), (64, 5, 3)]


@pytest.mark.parametrize('recover', [True, False])
@pytest.mark.parametrize('size', [(192, 192), (160, 224), (96, 64), (224, 224)])
def test_classifiers_of_small_images_shrink_their_windows(recover, size):
    """As Swin's do: to the map, which then is not shifted."""
    depths = dict(TINY, depths=[1, 1, 6, 2])
    model = swin(
        arch=depths, key_mode='released_cls', recover=recover, img_size=size, num_semantic=2
    )
    outs = model(torch.rand(1, 3, *size))
    sides = [min(size) // stride for stride in (4, 8, 16, 32)]
    assert outs[1].shape[2:] == (size[0] // 8, size[1] // 8)
    if recover:
        windows = [stage.blocks[0].attn.w_msa.window_size[0] for stage in model.stages]
        assert windows == [min(side, 7) for side in sides]
        assert outs[3].shape[2:] == (size[0] // 32, size[1] // 32)
    shape = outs[3].shape[2:]
    if shape[0] == shape[1]:
        attention = model.stages[3].blocks[1].attn
        tokens = torch.rand(1, shape[0] * shape[1], 64)
        torch.testing.assert_close(attention(tokens, tuple(shape)), attention.w_msa(tokens))


@torch.no_grad()
@pytest.mark.parametrize('sides', [(224, 96), (96, 224)])
@pytest.mark.parametrize('recover', [True, False])
def test_weights_trained_with_other_windows_load(tmp_path, recover, sides):
    """Of shrunk windows with the biases of their offsets; the rest as it is."""
    options = dict(key_mode='released_cls', recover=recover, num_semantic=1)
    source, target = (swin(img_size=side, **options) for side in sides)
    weights = source.state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'source.pth')
    check_fit(target, weights)
    target.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'source.pth'))
    target.init_weights()
    other = swin(img_size=sides[1], **options)
    other.load_state_dict(weights)
    images = torch.rand(1, 3, sides[1], sides[1])
    for expected, out in zip(target(images), other(images)):
        assert torch.equal(expected, out)
    name = 'stages.2.blocks.0.attn.w_msa.relative_position_bias_table'
    before, after = (
        model.state_dict()[name].unflatten(0, (-1, side))
        for model, side in (
            (source, 2 * min(7, sides[0] // 16) - 1),
            (target, 2 * min(7, sides[1] // 16) - 1),
        )
    )
    if sides[1] < sides[0]:
        assert torch.equal(after, before[1:-1, 1:-1])
    else:
        assert before.min() - 0.1 < after.min() < after.max() < before.max() + 0.1
    centre = [table[len(table) // 2, len(table) // 2] for table in (before, after)]
    torch.testing.assert_close(*centre, rtol=0, atol=0.15)


@torch.no_grad()
def test_no_semantic_token_is_padding_alone():
    x = torch.rand(1, 14 * 14, 4)
    for number in range(1, 15):
        tokens = RegionPooling(4, (number, number), 'avg')(x, (14, 14))
        assert bool(tokens.any(dim=-1).all()) == regions_fit(14, number), number


def test_images_smaller_than_the_windows_are_refused():
    # Of semantic tokens in the last stage if they are not recovered: half of a window's three
    for recover, stage, side, rows in ((True, 4, 160, 5), (False, 3, 96, 6), (False, 4, 112, 2)):
        model = swin(key_mode='released_cls', recover=recover)
        message = f'Stage {stage} has .* of {side}x200 gives it a map of {rows}x.* set img_size'
        with pytest.raises(ValueError, match=message):
            model(torch.rand(1, 3, side, 200))


# Messages


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='huge'), "Unknown arch 'huge'; choose from"),
        (dict(key_mode='all'), "key_mode must be one of .* got 'all'"),
        (dict(pad_mask='some'), "pad_mask must be one of .* got 'some'"),
        (dict(relative_pos=True), "it needs key_mode='released_cls'"),
        (dict(arch={**TINY, 'depths': [1, 1, 8, 1]}), 'depth 8 must be a multiple of 6'),
        (dict(recover=False, num_base=5), 'num_base=5 must leave 2 generation layers'),
        (dict(key_mode='released_cls', pad_mask='official'), "leave out pad_mask='official'"),
        (dict(key_mode='released_cls', pad_mask=False), 'leave out pad_mask=False'),
        (dict(pad_mask=0), 'pad_mask must be one of .* got 0'),
        (dict(drop_path_rate=2.0), 'drop_path_rate must be a number from 0 to 1, got 2.0'),
        (dict(layer_scale_init_value='x'), "layer_scale_init_value must be a number .* got 'x'"),
        (dict(layer_scale_init_value=False), 'layer_scale_init_value must be a number'),
        (dict(stem_norm_cfg=None), 'stem_norm_cfg must be a dict .* got None'),
        (dict(init_cfg=dict(type='Kaiming')), "init_cfg must be .*'Pretrained'.* got .*'Kaiming'"),
        (dict(init_cfg=[dict(type='Pretrained')]), r'init_cfg must be .* got \['),
        (dict(semantic_shortcut='no'), "semantic_shortcut must be True or False, got 'no'"),
        (dict(conv_pos='no'), "conv_pos must be True or False, got 'no'"),
        (dict(with_cp='no'), "with_cp must be True or False, got 'no'"),
        (dict(recover=False, num_base='2'), "num_base must be an integer of at least 1, got '2'"),
        (dict(out_indices=(0, 0)), r'out_indices \(0, 0\) names a stage twice'),
        (dict(key_mode='released_cls', img_size=32), 'num_semantic must be .* from 1 to 2, got 3'),
        (dict(key_mode='released_cls', key_windows=(14, 21)), 'key_windows has no effect with'),
        (dict(key_mode='released_cls', recover_key_window=9), 'recover_key_window has no effect'),
        (dict(num_base=2), 'num_base has no effect with recover=True'),
        (dict(recover=False, conv_pos=True), 'conv_pos has no effect with recover=False'),
        (dict(recover=False, semantic_shortcut=False), 'semantic_shortcut has no effect'),
        (dict(recover=False, recover_key_window=9), 'recover_key_window has no effect'),
        (dict(recover=False, key_windows=(14, 21)), 'key_windows must be 1 integer.* sequence'),
        (dict(recover='no'), "recover must be True or False, got 'no'"),
        (dict(key_windows=(3, 3)), 'key_windows must be 2 integer.* sequence of at least 7'),
        (dict(key_windows=14), 'key_windows must be 2 integer.* sequence of at least 7, got 14'),
        (dict(recover_key_window=0), 'recover_key_window must be an integer of at least 3, got 0'),
        (dict(img_size=-1), 'img_size must be 2 integer.* sequence of at least 1'),
        (dict(window_size=0), 'window_size must be an integer of at least 1, got 0'),
        (dict(num_semantic=0), 'num_semantic must be an integer from 1 to 7, got 0'),
        (dict(out_indices=(-1,)), r'out_indices must be .* from 0 to 3, got \(-1,\)'),
        (dict(out_indices=(4,)), r'out_indices must be .* from 0 to 3, got \(4,\)'),
        (dict(out_indices=3), 'out_indices must be .* from 0 to 3, got 3'),
        (dict(frozen_stages=4), 'frozen_stages must be an integer from -1 to 3, got 4'),
        (dict(arch={**TINY, 'depths': [1, 6, 1]}), 'arch.depths must be 4 integer.* sequence'),
        (
            dict(relative_pos=True, key_mode='released_cls', img_size=(256, 128)),
            'relative_pos needs a square semantic map',
        ),
    ],
)
def test_settings_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        swin(**options)


@pytest.mark.parametrize('option', ['use_global_center', 'relative_pos'])
def test_parameters_that_fix_the_input_size(option):
    model = swin(key_mode='released_cls', img_size=224, **{option: True})
    model(torch.rand(1, 3, 224, 224))
    with pytest.raises(ValueError, match=f'set img_size to the input size or {option}=False'):
        model(torch.rand(1, 3, 256, 256))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(token_fusion=dict(type='ToMe', r=2)), 'takes no token_fusion'),
        (dict(out_type='cls_token'), 'has no class token'),
        (dict(num_base=5), 'do not fit into 6 layers'),
        (dict(num_generation=1), 'there is none'),
        (dict(num_generation=2.0), 'num_generation must be an integer of at least 1, got 2.0'),
        (dict(num_base=-1), 'num_base must be an integer of at least 0, got -1'),
        (dict(use_global_center='no'), "use_global_center must be True or False, got 'no'"),
        (
            dict(semantic_grid=(20, 4)),
            'padding alone on the 8x8 .* 8 patches takes 1, 2, 3, 4, 5, 8$',
        ),
        (dict(semantic_grid=(4, 6)), 'regions of padding alone'),
        (dict(semantic_grid=4), 'semantic_grid must be 2 integer.* sequence of at least 1, got 4'),
        (dict(semantic_grid=(0, 4)), 'semantic_grid must be 2 integer.* sequence of at least 1'),
        (dict(pool='inter'), "pool must be one of .* got 'inter'"),
    ],
)
def test_settings_of_deit_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        deit(**options)
