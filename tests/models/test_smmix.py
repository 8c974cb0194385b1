import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vitdown.models.backbones import VisionTransformer
from vitdown.models.layers import MultiheadAttention
from vitdown.models.mixing import (
    flip_partner,
    masked_token_means,
    mix_images,
    paste_regions,
    pick_regions,
    received_attention,
    region_mask,
    region_scores,
    region_sizes,
    smmix_losses,
    smooth_onehot,
    token_geometry,
)
from vitdown.models.mixing.smmix import TokenGeometry
from vitdown.registry import MODELS


def test_regions_of_the_paper():
    assert region_sizes((14, 14)) == [(s, s) for s in range(3, 11)]
    assert region_sizes((7, 7)) == [(s, s) for s in range(1, 6)]
    assert region_sizes((3, 3)) == [(1, 1), (2, 2)]


def test_longer_axis_is_in_proportion():
    assert region_sizes((16, 8)) == [(2 * s, s) for s in range(2, 7)]
    assert region_sizes((8, 16)) == [(s, 2 * s) for s in range(2, 7)]
    assert region_sizes((21, 10))[0] == (4, 2)
    with pytest.raises(ValueError, match='grid of 1x4 tokens'):
        region_sizes((1, 4))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_pasted_pixels_are_the_partners_and_all_others_stay(data):
    grid = data.draw(st.tuples(st.integers(2, 6), st.integers(2, 6)))
    size = (data.draw(st.integers(1, grid[0] - 1)), data.draw(st.integers(1, grid[1] - 1)))
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    overlap = data.draw(st.integers(0, 2))
    patch = (stride[0] + overlap, stride[1] + overlap)
    batch = data.draw(st.integers(1, 5))
    height, width = ((g - 1) * s + p for g, s, p in zip(grid, stride, patch))
    x = torch.rand(batch, 3, height + data.draw(st.integers(0, 1)), width)
    clean = x.clone()
    regions = pick_regions(torch.rand(batch, grid[0] * grid[1]), grid, size)
    partner = torch.randperm(batch)
    mixed = paste_regions(x, regions, partner, TokenGeometry(grid, stride, patch))
    assert torch.equal(x, clean)
    columns = grid[1] - size[1] + 1
    rows, cols = ((n - 1) * s + p for n, s, p in zip(size, stride, patch))
    for i in range(batch):
        expected = clean[i].clone()
        ty, tx = (divmod(regions.target[i].item(), columns)[k] * stride[k] for k in (0, 1))
        giver = partner[i]
        sy, sx = (divmod(regions.source[giver].item(), columns)[k] * stride[k] for k in (0, 1))
        block = clean[giver][:, sy : sy + rows, sx : sx + cols]
        expected[:, ty : ty + rows, tx : tx + cols] = block
        assert torch.equal(mixed[i], expected)


def test_windows_are_sums_and_ties_go_to_the_first():
    scores = torch.rand(2, 12)
    sums = region_scores(scores, (3, 4), (2, 3))
    maps = scores.view(2, 3, 4)
    expected = [maps[:, y : y + 2, x : x + 3].sum((1, 2)) for y in (0, 1) for x in (0, 1)]
    torch.testing.assert_close(sums, torch.stack(expected, 1))
    regions = pick_regions(torch.ones(2, 12), (3, 4), (2, 3))
    assert regions.target.tolist() == regions.source.tolist() == [0, 0]


def test_mask_covers_the_window():
    mask = region_mask(torch.tensor([0, 3]), (3, 4), (2, 3)).view(2, 3, 4)
    assert mask.sum((1, 2)).tolist() == [6, 6]
    assert mask[0, :2, :3].all()
    assert mask[1, 1:, 1:].all()


def test_pairs_may_change_places():
    """The two images of a pair swapped: the mixed images are swapped too."""
    x, scores = torch.rand(6, 3, 8, 8), torch.rand(6, 16)
    geometry = TokenGeometry((4, 4), (2, 2), (2, 2))

    def mix(x, scores):
        return paste_regions(x, pick_regions(scores, (4, 4), (2, 2)), flip_partner(6), geometry)

    order = torch.tensor([5, 1, 3, 2, 4, 0])
    assert torch.equal(mix(x[order], scores[order]), mix(x, scores)[order])


def test_labels():
    scores = smooth_onehot(torch.tensor([1, 0]), 4, 0.2)
    torch.testing.assert_close(scores[0], torch.tensor([0.05, 0.85, 0.05, 0.05]))
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(mix_images(x, flip_partner(2), 1.0), x)


def test_means_are_taken_in_full_precision():
    tokens = (1000 * torch.rand(2, 5000, 4)).half()
    mask = torch.rand(2, 3, 5000) > 0.1
    with torch.autocast('cpu', torch.bfloat16):
        means = masked_token_means(tokens, mask)
    expected = [[t[m].double().mean(0) for m in ms] for t, ms in zip(tokens, mask)]
    torch.testing.assert_close(
        means.double(), torch.stack([torch.stack(e) for e in expected]), rtol=1e-4, atol=0.0
    )


def test_losses_vanish_where_they_should():
    clean = torch.randn(4, 5, requires_grad=True)
    partner, lam = flip_partner(4), 0.7
    mixed = lam * clean.detach() + (1 - lam) * clean.detach()[partner]
    logits = mixed.clone().requires_grad_()
    regional = torch.randn(4, 2, 5, requires_grad=True)
    target = smooth_onehot(torch.arange(4), 5)
    losses = smmix_losses(logits, regional, clean, target, partner, lam)
    assert losses['loss_con'].item() == pytest.approx(0, abs=1e-6)
    sum(losses.values()).backward()
    assert clean.grad is None
    assert regional.grad.any()


def test_attention_is_what_the_layers_compute():
    torch.manual_seed(0)
    attn = MultiheadAttention(24, 3).eval()
    x = torch.randn(2, 10, 24)
    _, weights = attn(x, need_weights=True)
    found = received_attention(attn, x)
    torch.testing.assert_close(found, weights[:, :, 1:, 1:].mean(dim=(1, 2)))
    torch.testing.assert_close(
        received_attention(attn, x, mode='cls'), weights[:, :, 0, 1:].mean(dim=1)
    )
    theirs = MODELS.build(
        dict(
            type='mmpretrain.VisionTransformer',
            arch=dict(embed_dims=24, num_layers=1, num_heads=3, feedforward_channels=24),
            img_size=16,
            patch_size=8,
        )
    ).layers[0].attn  # fmt: skip
    theirs.load_state_dict(attn.state_dict())
    torch.testing.assert_close(received_attention(theirs, x), found)


def test_geometry():
    arch = dict(embed_dims=24, num_layers=1, num_heads=3, feedforward_channels=24)
    overlapping = VisionTransformer(arch, img_size=(32, 16), patch_size=8, stride=6)
    assert token_geometry(overlapping, (32, 16), 10) == TokenGeometry((5, 2), (6, 6), (8, 8))
    pyramid = nn.Identity()
    assert token_geometry(pyramid, (224, 224), 49) == TokenGeometry((7, 7), (32, 32), (32, 32))
    assert token_geometry(pyramid, (256, 128), 32) == TokenGeometry((8, 4), (32, 32), (32, 32))
    with pytest.raises(ValueError, match='no grid of square cells'):
        token_geometry(pyramid, (224, 224), 50)
    plain = VisionTransformer(arch, img_size=32, patch_size=8)
    with pytest.raises(ValueError, match='no multiple of the patch'):
        token_geometry(plain, (36, 32), 16)
