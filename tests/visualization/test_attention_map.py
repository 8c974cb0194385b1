"""Attention rollout over images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import run_tool
from tools.visualization import vis_attention
from vitdown.engine.launch import ConfigError
from vitdown.models.layers import attention_rollout
from vitdown.registry import MODELS
from vitdown.visualization.attention_map import (
    AttentionMap,
    attention_maps,
    draw_attention,
    draw_patches,
    draw_rollout,
)

VIT = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48),
    img_size=(32, 16),
    patch_size=8,
)
BASELINE = dict(type='BNNeckHead', num_classes=4, in_channels=24)
DCAL = dict(type='DCALHead', num_classes=4, in_channels=24, num_heads=3, glca=dict(ratio=0.5))


def build(head, **backbone):
    torch.manual_seed(0)
    backbone = {**VIT, **backbone}
    if head['type'] == 'BNNeckHead':
        backbone['out_type'] = 'cls_token'
    return MODELS.build(dict(type='ReIdentifier', backbone=backbone, head=head)).eval()


@pytest.mark.parametrize(('head', 'count'), [(BASELINE, 2), (DCAL, 4)])
def test_maps_are_the_class_tokens_rollout(head, count):
    model = build(head)
    images = torch.randn(3, 3, 32, 16)
    maps = attention_maps(model, images)
    attentions = model.backbone.forward_tokens(images, need_attention=True).attentions
    rollout = attention_rollout(attentions)[:, 0, 1:].reshape(3, 4, 2)
    for attention, expected in zip(maps, rollout, strict=True):
        np.testing.assert_allclose(attention.scores, expected.detach().numpy(), rtol=1e-4)
        order = np.argsort(-attention.scores.ravel(), kind='stable')
        assert attention.selected.tolist() == order[:count].tolist()
    assert len(attention_maps(model, images, ratio=1.0)[0].selected) == 8


def test_overlapping_patches_and_fused_tokens():
    model = build(DCAL, stride=4, token_fusion=dict(type='ToMe', r=3))
    (attention,) = attention_maps(model, torch.randn(1, 3, 32, 16), ratio=0.1)
    assert attention.scores.shape == (7, 3)
    row, column = divmod(attention.selected[0].item(), 3)
    assert attention.boxes()[0].tolist() == [
        4 * column, 4 * row, 4 * column + 8, 4 * row + 8,
    ]  # fmt: skip


def test_side_information():
    model = build(BASELINE, sie=dict(num_cameras=2))
    model.backbone.sie.embed.data.normal_(std=20)
    images = torch.randn(1, 3, 32, 16)
    scores = [
        attention_maps(model, images, [dict(camera_id=camera)])[0].scores for camera in (0, 1)
    ]
    assert not np.allclose(*scores)


def test_backbones_without_attention_are_named():
    head = dict(BASELINE, in_channels=512)
    model = MODELS.build(
        dict(type='ReIdentifier', backbone=dict(type='mmpretrain.ResNet', depth=18), head=head)
    )
    with pytest.raises(TypeError, match='ResNet does not offer its attention'):
        attention_maps(model, torch.randn(1, 3, 32, 16))


def test_pictures():
    image = np.full((32, 16, 3), 100, np.uint8)
    scores = np.zeros((4, 2), np.float32)
    scores[2, 1] = 1
    attention = AttentionMap(scores, np.array([5]), (8, 8), (8, 8))
    rollout = draw_rollout(image, attention)
    # Red where the score is highest, blue far from it
    assert rollout[21, 13, 0] > rollout[21, 13, 2]
    assert rollout[2, 2, 2] > rollout[2, 2, 0]
    patches = draw_patches(image, attention)
    assert (patches[18:22, 10:14] == 100).all()
    assert (patches[:16] == 40).all()
    assert patches[16, 8].tolist() == [255, 230, 0]
    assert draw_attention(image, attention, scale=2).size == (3 * 32 + 12, 64)
    flat = AttentionMap(np.ones((4, 2), np.float32), np.array([0]), (8, 8), (8, 8))
    assert np.ptp(draw_rollout(image, flat), axis=(0, 1)).max() == 0


def test_rollout_lies_where_the_patches_are():
    """Three overlapping patches of 8 pixels end at pixel 20 of 24: the rest is left as it is."""
    image = np.full((8, 24, 3), 100, np.uint8)
    attention = AttentionMap(np.array([[0.0, 1.0, 0.0]]), np.array([1]), (8, 8), (8, 6))
    colours = draw_rollout(image, attention).astype(int)
    assert (colours[:, 20:] == 100).all()
    assert (colours[:, :20] != 100).any(axis=2).all()
    # Symmetric about the centre of the middle patch, where it is red
    np.testing.assert_array_equal(colours[:, :20], colours[:, 19::-1])
    assert colours[4, 9, 0] > colours[4, 9, 2]
    assert colours[4, 4, 2] > colours[4, 4, 0]


def test_patches_behind_a_stem_are_those_of_the_image():
    vit = dict(type='LVViT', img_size=(32, 16), patch_size=8)
    (attention,) = attention_maps(build(BASELINE, **vit), torch.randn(1, 3, 32, 16))
    assert attention.scores.shape == (4, 2)
    assert attention.patch_size == attention.stride == (8, 8)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['photos', 'matches.jsonl'], 'matches.jsonl holds ranking lists and goes alone'),
        (['matches.jsonl', 'missing'], 'matches.jsonl holds ranking lists and goes alone'),
        (['photos', '-k', '3'], '-k is for ranking lists'),
        (['photos', '--patches'], '--patches is for ranking lists'),
        (['matches.jsonl', '-k', '0'], '-k must be at least 1, got 0'),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(monkeypatch, arguments, message):
    command = ['vis_attention.py', 'config.py', 'weights.pth', *arguments, '--out-dir', 'out']
    monkeypatch.setattr('sys.argv', command)
    with pytest.raises(ConfigError, match=message):
        vis_attention.check_arguments(vis_attention.parse_args())


def test_ranking_lists_may_hold_empty_lines(tmp_path):
    line = json.dumps(dict(query='a.png', matches=[dict(path='b.png', rank=1, score=0.5)]))
    file = tmp_path / 'matches.jsonl'
    file.write_text(f'{line}\n\n{line}\n\n')
    lists = vis_attention.read_ranking_lists(str(file), 10, 100)
    assert lists == 2 * [dict(query='a.png', matches=[('b.png', 1, 0.5)])]
    file.write_text(f'{line}\n\nnothing\n')
    with pytest.raises(ConfigError, match='line 3: expected a record'):
        vis_attention.read_ranking_lists(str(file), 10, 100)


def test_tool_draws_folders_and_ranking_lists(tmp_path, tiny_config, tiny_checkpoint, market_root):
    tool = ('tools/visualization/vis_attention.py', tiny_config, tiny_checkpoint)
    folder = market_root / 'query'
    result = run_tool(*tool, folder, '--out-dir', tmp_path / 'folder', '--max-images', 2)
    assert f'2 pictures written to {tmp_path / "folder"}' in result.stdout
    pictures = sorted((tmp_path / 'folder').iterdir())
    first = sorted(folder.iterdir())[0]
    assert [path.name[:6] for path in pictures] == ['00000_', '00001_']
    assert first.stem in pictures[0].name
    with Image.open(pictures[0]) as picture:
        assert picture.size == (3 * 2 * 16 + 2 * 6, 2 * 32)

    matches = [dict(rank=1, score=0.9, id=3, path=str(first))]
    lists = tmp_path / 'matches.jsonl'
    lists.write_text(json.dumps(dict(query=str(first), matches=matches)) + '\n')
    run_tool(*tool, lists, '--out-dir', tmp_path / 'lists', '--patches')
    (picture,) = (tmp_path / 'lists').iterdir()
    assert first.stem in picture.name

    lists.write_text('{"query": 1}\n')
    result = run_tool(*tool, lists, '--out-dir', tmp_path / 'lists', check=False)
    assert result.returncode == 2
    assert 'matches.jsonl, line 1: expected a record of tools/search.py' in result.stderr
    assert 'Traceback' not in result.stderr
