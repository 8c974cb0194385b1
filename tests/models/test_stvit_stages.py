"""Whole stages of STViT against a slow form, and how their layers are set up."""

import pytest
import torch
import torch.nn.functional as F

from vitdown.models.backbones import STViTSwin
from vitdown.models.backbones.stvit_stages import CompressedStage, DumbbellStage
from vitdown.models.layers import SemanticLayout, SemanticTokenGenerator
from vitdown.models.layers.semantic_pooling import split_regions

from .test_stvit import TINY, deit, randomise, swin

WINDOW, SIDE, DIMS = 7, 3, 12


def attend(layer, x, keys):
    """Multi-head attention of tokens ``(n, C)`` to keys ``(m, C)``, written out."""
    projections = zip(layer.attn.qkv.weight.chunk(3), layer.attn.qkv.bias.chunk(3))
    query, key, value = (
        F.linear(layer.ln1(tokens), *weights).unflatten(1, (layer.attn.num_heads, -1))
        for tokens, weights in zip((x, keys, keys), projections)
    )
    scores = torch.einsum('nhd,mhd->hnm', query, key) / query.shape[-1] ** 0.5
    out = torch.einsum('hnm,mhd->nhd', scores.softmax(dim=-1), value)
    return layer.attn.gamma1(layer.attn.proj(out.flatten(1)))


def encode(layer, x, keys, shortcut=True):
    x = attend(layer, x, keys) + (x if shortcut else 0)
    return layer.ffn(layer.ln2(x), identity=x)


class SlowStage:
    """Tokens one by one; semantic tokens, by place, are those that have image tokens at all."""

    def __init__(self, x, size):
        self.cells = x.unflatten(0, size)
        windows = [-(-length // WINDOW) for length in size]
        self.tokens = {}
        for row in range(windows[0] * SIDE):
            for column in range(windows[1] * SIDE):
                top, left = (i // SIDE * WINDOW + i % SIDE * 2 for i in (row, column))
                region = self.cells[top : top + 3, left : left + 3].flatten(0, 1)
                if len(region):
                    self.tokens[row, column] = region.amax(dim=0)

    def image(self, place, before, after):
        """Image tokens of the window of a semantic token and of what surrounds it."""
        top, left = (i // SIDE * WINDOW for i in place)
        rows, columns = (slice(max(0, i - before), i + WINDOW + after) for i in (top, left))
        return self.cells[rows, columns].flatten(0, 1)

    def semantic(self, window=None, margin=0):
        """Semantic tokens of a window and so many around it; all without one."""
        near = [
            token
            for place, token in self.tokens.items()
            if window is None
            or all(
                -margin <= i - SIDE * w < SIDE + margin for i, w in zip(place, window, strict=True)
            )
        ]
        return torch.stack(near)

    def update(self, layer, keys, center=None, **kwargs):
        """Run a layer on each semantic token; ``keys`` gives those of a place."""
        new = {}
        for place, token in self.tokens.items():
            query = token if center is None else token + center[place]
            new[place] = encode(layer, query[None], keys(place), **kwargs)[0]
        self.tokens = new

    def refine_by_all(self, layer, center=None):
        self.update(layer, lambda _: torch.cat((self.semantic(), self.cells.flatten(0, 1))), center)

    def self_attend(self, layer, local):
        self.update(
            layer, lambda place: self.semantic([i // SIDE for i in place] if local else None)
        )

    def recover(self, layer, margin=None):
        rows, columns, _ = self.cells.shape
        out = []
        for place in ((i, j) for i in range(rows) for j in range(columns)):
            window = None if margin is None else [i // WINDOW for i in place]
            out.append(encode(layer, self.cells[place][None], self.semantic(window, margin or 0)))
        return torch.cat(out)


def slow_dumbbells(stage, x, size, released):
    layers = list(stage.blocks)
    center = stage.global_center
    if center is not None:
        center = center[0].unflatten(0, stage.semantic_size)
    while layers:
        swin_block, generate, refine, local, across, recover, *layers = layers
        slow = SlowStage(swin_block(x[None], size)[0], size)
        if released:
            slow.update(
                generate,
                lambda place, slow=slow: torch.cat(
                    (slow.semantic([i // SIDE for i in place]), slow.image(place, 3, 3))
                ),
                shortcut=stage.shortcut,
            )
            slow.refine_by_all(refine, center)
        else:
            slow.update(generate, lambda place, slow=slow: slow.image(place, 3, 4))
            slow.update(refine, lambda place, slow=slow: slow.image(place, 7, 7))
        slow.self_attend(local, local=True)
        slow.self_attend(across, local=False)
        x = slow.recover(recover, None if released else 3)
        center = None  # for the first unit alone
    return x


def build(stage, size, **kwargs):
    options = dict(embed_dims=DIMS, num_heads=2, input_size=size, downsample=False)
    return randomise(stage(**options, **kwargs)).eval()


@pytest.mark.parametrize('size', [(10, 17), (16, 8), (14, 14)])
@pytest.mark.parametrize('released', [False, True], ids=['window', 'released'])
@torch.no_grad()
def test_two_units_equal_a_slow_form(size, released):
    """Each unit with its own layers; no layer sees padding, nor tokens made of nothing else."""
    if released:
        options = dict(key_mode='released_cls', use_global_center=True, shortcut=size == (14, 14))
    else:
        options = dict(recover_key_window=9)
    stage = build(DumbbellStage, size, depth=12, **options)
    assert [stage.blocks[i].attn.shift_size for i in (0, 6)] == [0, 0]
    x = torch.rand(size[0] * size[1], DIMS, generator=torch.Generator().manual_seed(1))
    expected = slow_dumbbells(stage, x, size, released)
    out, out_size = stage(x[None], size)
    assert out_size == size
    torch.testing.assert_close(out[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('size', [(10, 17), (14, 14)])
@torch.no_grad()
def test_the_compressed_stage_equals_a_slow_form(size):
    stage = build(CompressedStage, size, depth=7, num_base=2, use_global_center=True)
    assert [stage.blocks[i].attn.shift_size for i in (0, 1)] == [0, 3]
    x = torch.rand(1, size[0] * size[1], DIMS, generator=torch.Generator().manual_seed(1))
    out, semantic_size = stage(x, size)
    for block in stage.blocks[:2]:
        x = block(x, size)
    slow = SlowStage(x[0], size)
    slow.update(stage.blocks[2], lambda place: slow.image(place, 3, 4))
    slow.refine_by_all(stage.blocks[3], stage.global_center[0].unflatten(0, semantic_size))
    for layer, local in zip(stage.blocks[4:], (True, False, True)):
        slow.self_attend(layer, local)
    out = out[0].unflatten(0, semantic_size)
    assert len(slow.tokens) > 20
    for place, token in slow.tokens.items():
        torch.testing.assert_close(out[place], token, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_later_generation_layers_of_deit_see_all_tokens():
    """Semantic ones among the keys from the second on, the centres in the second alone."""
    model = deit(num_base=1, num_generation=3, out_type='raw', out_indices=(0, 1, 2, 3))
    image, *outs = (out[0] for out in model(torch.rand(1, 3, 32, 32)))
    semantic = model.pool(image[None], (8, 8))[0]
    expected = [encode(model.layers[1], semantic, image)]
    for layer, center in ((2, model.global_center[0]), (3, 0)):
        keys = torch.cat((expected[-1], image))
        expected.append(encode(model.layers[layer], expected[-1] + center, keys))
    for out, tokens in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, tokens, rtol=1e-4, atol=1e-4)


def test_regions_are_padded_more_at_the_end():
    regions = split_regions(torch.ones(1, 13 * 4, 1), (13, 4), (4, 4))[0, ::4, :, 0, 0]
    assert regions.tolist() == [[0, 1, 1, 1], [1] * 4, [1] * 4, [1, 1, 0, 0]]


@pytest.mark.parametrize('recover', [True, False])
def test_drop_path_grows_over_all_layers(recover):
    model = STViTSwin({**TINY, 'depths': [1, 2, 6, 1]}, recover=recover, drop_path_rate=0.5)
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = torch.linspace(0, 0.5, 10).tolist()
    assert [getattr(b.ffn.dropout_layer, 'drop_prob', 0) for b in blocks] == pytest.approx(rates)
    semantic = blocks[4:9] if recover else blocks[5:9]
    assert [b.attn.out_drop.drop_prob for b in semantic] == pytest.approx(
        rates[9 - len(semantic) : 9]
    )


def test_without_a_shortcut_the_branch_is_never_dropped():
    layer = SemanticTokenGenerator(
        12, 2, 24, with_own_keys=True, shortcut=False, drop_path_rate=0.99,
        layer_scale_init_value=1.0,
    )  # fmt: skip
    layer.ffn.gamma2.weight.data.zero_()
    tokens = torch.rand(8, 9, 12), torch.rand(8, 49, 12), SemanticLayout(7, 7)
    torch.testing.assert_close(layer.train()(*tokens), layer.eval()(*tokens))


@pytest.mark.parametrize('make', [swin, deit])
@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.filterwarnings('ignore:torch.utils.checkpoint')
def test_every_layer_is_recomputed(make, with_cp):
    model = make(with_cp=with_cp).train()
    calls = []
    layers = [m for m in model.modules() if hasattr(m, 'ffn')]
    for layer in layers:
        layer.ffn.register_forward_pre_hook(lambda *_: calls.append(1))
    model(torch.rand(1, 3, 32, 32).requires_grad_())[-1].sum().backward()
    assert len(calls) == len(layers) * (1 + with_cp)


@pytest.mark.parametrize('norm_eval', [False, True])
def test_norms_of_the_stem_keep_their_statistics(norm_eval):
    model = swin(norm_eval=norm_eval).train()
    statistics = model.patch_embed.projection[1].bn.running_mean.clone()
    model(torch.rand(2, 3, 32, 32))
    assert torch.equal(statistics, model.patch_embed.projection[1].bn.running_mean) == norm_eval
    assert model.stages[2].training
