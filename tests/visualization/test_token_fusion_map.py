import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import run_tool
from vitdown.engine.launch import load_config
from vitdown.models.backbones import DistilledVisionTransformer, STViTDeiT, VisionTransformer
from vitdown.registry import MODELS
from vitdown.visualization import FusionTrace, draw_fusion, draw_groups, trace_fusion

ARCH = dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=48)
YELLOW = (255, 230, 0)


@pytest.mark.parametrize('cls', [VisionTransformer, DistilledVisionTransformer])
def test_trace_follows_the_sources(cls):
    policy = dict(type='MCTF', r=4, min_tokens=2)
    backbone = cls(ARCH, (32, 16), 8, token_fusion=policy).eval()
    images = torch.randn(2, 3, 32, 16)
    first, second = trace_fusion(backbone, images)
    feats = backbone.forward_tokens(images)
    extra = backbone.num_extra_tokens
    num_tokens = tuple(backbone.token_fusion.schedule(8 + extra))
    for trace, source in zip((first, second), feats.source):
        assert trace.num_tokens == num_tokens
        assert trace.groups.shape == (3, 4, 2)
        assert trace.groups[-1].ravel().tolist() == source[extra:].tolist()
        assert len(np.unique(trace.groups[0])) == 8
        assert len(np.unique(trace.groups[-1])) == num_tokens[-1] - extra
    assert not backbone.token_fusion._forward_hooks
    pooled = STViTDeiT(ARCH, 1, 2, (2, 2), img_size=32, patch_size=8)
    for other in (VisionTransformer(ARCH, 32, 8), pooled):
        message = f'This {type(other).__name__} fuses no tokens; vitdown.VisionTransformer takes'
        with pytest.raises(ValueError, match=message):
            trace_fusion(other, images)


@pytest.mark.parametrize(
    ('cls', 'options', 'fusing'),
    [
        (DistilledVisionTransformer, dict(token_fusion=dict(type='ToMe', r=[1, 0, 1])), 2),
        (
            VisionTransformer,
            dict(
                token_fusion=dict(type='MCTF', r=1, min_tokens=2),
                with_cls_token=False,
                out_type='avg_featmap',
            ),
            2,
        ),
    ],
)
def test_layers_that_fuse_are_drawn_whatever_stands_before_the_patches(cls, options, fusing):
    backbone = cls(ARCH, (32, 16), 8, **options).eval()
    (trace,) = trace_fusion(backbone, torch.randn(1, 3, 32, 16))
    picture = draw_fusion(np.zeros((32, 16, 3), np.uint8), trace, scale=1)
    assert picture.width == (1 + fusing) * (16 + 6) + 6


def test_groups_have_their_mean_colour_and_a_border():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, :4], image[:, 4:] = 40, 80
    picture = np.asarray(draw_groups(image, np.array([[3, 7]]), scale=4))
    assert picture.shape == (16, 32, 3)
    assert (picture[:, 16] == YELLOW).all()
    assert abs(int(picture[4, 4, 0]) - 40) <= 6
    assert abs(int(picture[4, 28, 0]) - 80) <= 6
    one = np.asarray(draw_groups(image, np.array([[3, 3]]), scale=1))
    assert (one == 60).all()


def test_layers_are_captioned_side_by_side():
    image = np.full((16, 8, 3), 200, np.uint8)
    groups = np.stack([np.arange(8).reshape(4, 2), np.zeros((4, 2), int)])
    trace = FusionTrace(groups, (9, 2), 9)
    fused_only = draw_fusion(image, trace, scale=2)
    assert fused_only.width == 2 * (16 + 6) + 6
    both = draw_fusion(image, trace, layers=[0, 1], scale=2)
    assert both.width == 3 * (16 + 6) + 6
    assert (np.asarray(both)[-14:] < 100).any()
    with pytest.raises(ValueError, match=r'layers 0 to 1, not \[2\]'):
        draw_fusion(image, trace, layers=[1, 2])


@pytest.fixture(scope='module')
def config(tiny_config, tmp_path_factory):
    """A re-ID model with side information whose two layers fuse tokens, and its weights."""
    folder = tmp_path_factory.mktemp('fusion')
    path = folder / 'config.py'
    path.write_text(
        f"_base_ = '{tiny_config}'\n"
        "model = dict(backbone=dict(token_fusion=dict(type='ToMe', r=2), sie=dict(num_cameras=2)))"
    )
    torch.save(MODELS.build(load_config(str(path)).model).state_dict(), folder / 'weights.pth')
    return path


def test_tool_draws_pictures(config, market_root, tmp_path):
    weights = config.with_name('weights.pth')
    tool = 'tools/visualization/vis_token_fusion.py'
    result = run_tool(
        tool, config, weights, market_root / 'query', '--out-dir', tmp_path, '--max-images', 2
    )
    assert f'2 pictures written to {tmp_path}' in result.stdout
    pictures = sorted(tmp_path.glob('*.png'))
    assert len(pictures) == 2
    # image and two layers, twice as large
    assert Image.open(pictures[0]).size == (3 * (32 + 6) + 6, 64 + 16 + 12)

    cfg = load_config(str(config))
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    for path, picture in zip(sorted((market_root / 'query').glob('*.jpg')), pictures):
        shown = np.asarray(Image.open(path))
        inputs = torch.from_numpy(shown.copy()).permute(2, 0, 1).flip(0)
        data = model.data_preprocessor(dict(inputs=[inputs]), training=False)
        (trace,) = trace_fusion(model.backbone, data['inputs'], camera_ids=[0], view_ids=[0])
        expected = np.asarray(draw_fusion(shown, trace))
        assert np.array_equal(np.asarray(Image.open(picture)), expected), path
