"""CaiT, PVT, DeiT III, MobileNet and the CIFAR ResNets."""

import pytest
import timm
import torch
from mmpretrain.models.backbones import DeiT3 as MMPretrainDeiT3

from vitdown.converters import convert_state_dict, export_state_dict
from vitdown.engine.complexity import get_flops
from vitdown.models.backbones import (
    CaiT,
    CIFARResNet,
    DeiT3,
    MobileNetV1,
    PyramidVisionTransformer,
)
from vitdown.models.pretrained import load_pretrained
from vitdown.registry import MODELS


@pytest.mark.parametrize(
    ('make', 'params', 'gmacs'),
    [
        (lambda: CaiT('xxs24'), 11_956_264 - 193_000, 2.53),
        (lambda: PyramidVisionTransformer('tiny'), 13_229_288 - 513_000, 1.944),
        (lambda: PyramidVisionTransformer('small'), 24_485_864 - 513_000, 3.834),
        (lambda: PyramidVisionTransformer('medium'), 44_208_104 - 513_000, 6.686),
        (lambda: MobileNetV1(), 4_231_976 - 1_025_000, 0.579),
        (lambda: CIFARResNet(20), 269_722 - 650, 0.0406),
        (lambda: CIFARResNet(56), 853_018 - 650, 0.1255),
    ],
)
def test_size_and_cost_of_the_papers(make, params, gmacs):
    model = make()
    side = 32 if isinstance(model, CIFARResNet) else 224
    complexity = get_flops(model, (3, side, side))
    assert complexity.params == params
    assert complexity.macs == pytest.approx(gmacs * 1e9, rel=0.02)


def strip(state_dict):
    return {k.removeprefix('backbone.'): v for k, v in state_dict.items() if 'backbone.' in k}


def test_cait_is_timms():
    torch.manual_seed(0)
    reference = timm.create_model(
        'cait_xxs24_224', img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=4,
        init_values=0.5, num_classes=5,
    ).eval()  # fmt: skip
    weights = reference.state_dict()
    converted = convert_state_dict(weights, 'cait')
    arch = dict(embed_dims=24, num_layers=2, num_heads=4, feedforward_channels=96)
    model = CaiT(arch, img_size=32, patch_size=8).eval()
    model.load_state_dict(strip(converted))
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = reference.forward_features(image)[:, 0]
        torch.testing.assert_close(model(image)[0], expected, rtol=1e-4, atol=1e-5)
        assert model(torch.rand(2, 3, 40, 24))[0].shape == (2, 24)
    back = export_state_dict(converted, 'cait')
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    larger = CaiT(arch, img_size=(40, 24), patch_size=8)
    larger.load_state_dict(strip(converted))


def test_deit3_differs_from_mmpretrains_by_one_norm():
    torch.manual_seed(0)
    arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48)
    ours = DeiT3(arch, img_size=32, patch_size=8).eval()
    theirs = MMPretrainDeiT3(arch, img_size=32, patch_size=8)
    theirs.eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    theirs.load_state_dict(ours.state_dict())
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(ours(image)[0], theirs(image)[0], atol=1e-2)
        for layer in theirs.layers:
            layer.forward = lambda x, layer=layer: layer.ffn(
                layer.ln2(x + layer.attn(layer.ln1(x))), identity=x + layer.attn(layer.ln1(x))
            )
        torch.testing.assert_close(ours(image)[0], theirs(image)[0], rtol=1e-4, atol=1e-4)
    larger = DeiT3(arch, img_size=(48, 16), patch_size=8)
    larger.load_state_dict(ours.state_dict())
    assert larger.eval()(torch.rand(1, 3, 48, 16))[0].shape == (1, 24)


@pytest.mark.parametrize('out_indices', [(3,), (2, 3)])
def test_swins_of_uskd_lose_their_inner_norms(tmp_path, out_indices):
    def swin(indices):
        arch = dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])
        return MODELS.build(
            dict(
                type='mmpretrain.ImageClassifier',
                backbone=dict(
                    type='mmpretrain.SwinTransformer', arch=arch, img_size=64, out_indices=indices
                ),
                head=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=64),
            )
        )

    weights = swin((0, 1, 2, 3)).state_dict()
    file = tmp_path / 'official.pth'
    torch.save({'state_dict': {f'student.{key}': value for key, value in weights.items()}}, file)
    model = swin(out_indices)
    load_pretrained(model, str(file), 'cls_kd', prefix=None)
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key]), key
    assert convert_state_dict(weights, 'cls_kd').keys() == swin((3,)).state_dict().keys()


def test_pvt_takes_other_sizes():
    arch = dict(
        embed_dims=(8, 8, 16, 24),
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 3),
        mlp_ratios=(2, 2, 2, 2),
        sr_ratios=(4, 2, 2, 1),
    )
    model = PyramidVisionTransformer(arch, img_size=64)
    model.init_weights()
    assert model(torch.rand(1, 3, 96, 64))[0].shape == (1, 24)
    wide = PyramidVisionTransformer(arch, img_size=(64, 96))
    wide.load_state_dict(model.state_dict())
    weights = {f'backbone.{k}': v for k, v in model.state_dict().items()}
    back = convert_state_dict(export_state_dict(weights, 'pvt'), 'smmix')
    assert all(torch.equal(back[key], value) for key, value in weights.items())


def test_students_are_taken_out_of_distilling_checkpoints():
    weights = dict(a=torch.ones(1), b=torch.zeros(1))
    names = {'a': 'backbone.conv1.weight', 'b': 'head.fc.bias'}
    plain = {names[k]: v for k, v in weights.items()}
    stored = export_state_dict(plain, 'cls_kd')
    others = {
        'teacher.backbone.conv1.weight': torch.rand(1),
        'distill_losses.loss_uskd.fc.bias': torch.rand(1),
    }
    assert convert_state_dict({**stored, **others}, 'cls_kd').keys() == plain.keys()
    assert convert_state_dict(plain, 'cls_kd') == plain
    back = export_state_dict(convert_state_dict(stored, 'cls_kd'), 'cls_kd')
    assert back.keys() == stored.keys()
    with pytest.raises(ValueError, match='cls_kd format has no weights conv1.weight'):
        convert_state_dict({'conv1.weight': torch.ones(1)}, 'cls_kd')


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: CaiT('m48'), "Unknown arch 'm48'"),
        (lambda: PyramidVisionTransformer('huge'), "Unknown arch 'huge'"),
        (lambda: PyramidVisionTransformer('tiny', img_size=100), 'multiple of 32'),
        (lambda: CIFARResNet(18), 'depth must be 8, 14, 20'),
        (lambda: CIFARResNet(20, base_channels=9), 'base_channels must be even'),
        (lambda: MobileNetV1(out_indices=(2,)), 'out_indices'),
        (lambda: DeiT3('small', with_cls_token=False, out_type='avg_featmap'), 'class token'),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
