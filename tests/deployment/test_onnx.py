"""ONNX files give what PyTorch gives, for batches of any size; see also the tests of the tools."""

import numpy as np
import onnx
import pytest
import torch
from mmpretrain.structures import DataSample

from vitdown.deployment import DeployModel, OnnxExportError, export_onnx, onnx_session
from vitdown.deployment.openvino import OpenvinoExportError, export_openvino, openvino_model
from vitdown.registry import MODELS

VIT = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48),
    img_size=(32, 16),
    patch_size=8,
)
NVIT = dict(
    VIT,
    type='NViT',
    arch=dict(
        embed_dims=24, num_layers=2, num_heads=[2, 3], qk_dims=[8, 4], v_dims=[4, 12],
        feedforward_channels=[16, 40],
    ),
)  # fmt: skip
STVIT = dict(
    VIT,
    type='STViTDeiT',
    arch=dict(embed_dims=24, num_layers=6, num_heads=3, feedforward_channels=48),
    img_size=(64, 32),
    num_base=2,
)
SWIN = dict(
    type='STViTSwin',
    arch=dict(embed_dims=8, depths=[1, 1, 6, 1], num_heads=[1, 1, 2, 4]),
    layer_scale_init_value=1.0,
)
BNNECK = dict(type='BNNeckHead', num_classes=6, in_channels=24)
DCAL = dict(
    type='DCALHead', num_classes=6, in_channels=24, num_heads=3, feedforward_channels=48
)  # fmt: skip
FUSED = dict(VIT, token_fusion=dict(type='MCTF', r=2))
TOME = dict(VIT, token_fusion=dict(type='ToMe', r=2))
JPM = dict(type='JPMHead', num_classes=6, in_channels=24)
# Backbones of classifiers
CAIT = dict(VIT, type='CaiT')
PVT = dict(
    type='PyramidVisionTransformer',
    arch=dict(
        embed_dims=(8, 8, 16, 24), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 3),
        mlp_ratios=(2, 2, 2, 2), sr_ratios=(4, 2, 2, 1),
    ),
    img_size=(32, 16),
    patch_sizes=(1, 2, 2, 2),
)  # fmt: skip
T2T = dict(type='T2TViT', arch=dict(VIT['arch'], qkv_bias=False), img_size=(32, 16))
LV_VIT = dict(VIT, type='LVViT', arch=dict(VIT['arch'], qkv_bias=False, skip_lam=2.0))


def build(backbone: dict, head: dict = BNNECK):
    torch.manual_seed(0)
    model = MODELS.build(dict(type='ReIdentifier', backbone=backbone, head=head))
    model.init_weights()
    return model


def as_numpy(inputs: dict) -> dict:
    return {name: value.numpy() for name, value in inputs.items()}


@pytest.mark.parametrize(
    ('backbone', 'head', 'size'),
    [
        (VIT, DCAL, (32, 16)),
        (VIT, JPM, (32, 16)),
        (FUSED, BNNECK, (32, 16)),
        (TOME, BNNECK, (32, 16)),
        (NVIT, BNNECK, (32, 16)),
        (STVIT, BNNECK, (64, 32)),
        (SWIN, dict(BNNECK, in_channels=64), (64, 32)),
        (dict(VIT, sie=dict(num_cameras=4, num_views=3)), DCAL, (32, 16)),
        (dict(VIT, sie=dict(num_cameras=4)), BNNECK, (32, 16)),
        (dict(VIT, sie=dict(num_views=3)), JPM, (32, 16)),
    ],
    ids=[
        'dcal', 'jpm', 'mctf', 'tome', 'nvit', 'stvit-deit', 'stvit-swin', 'sie', 'sie-cameras',
        'sie-views',
    ],
)  # fmt: skip
def test_every_family_is_exported(backbone, head, size, tmp_path):
    deployed = DeployModel(build(backbone, head))
    assert export_onnx(deployed, tmp_path / 'model.onnx', size) < 1e-5
    inputs = deployed.example(3, size, seed=7)
    (output,) = onnx_session(tmp_path / 'model.onnx').run(None, as_numpy(inputs))
    np.testing.assert_allclose(output, deployed(**inputs).detach(), rtol=1e-3, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ['model.onnx']


def build_classifier(backbone: dict):
    torch.manual_seed(0)
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(backbone, type=f'vitdown.{backbone["type"]}'),
            head=dict(type='mmpretrain.VisionTransformerClsHead', num_classes=5, in_channels=24),
            data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor'),
        )
    )


@pytest.mark.parametrize(
    'backbone', [VIT, CAIT, PVT, T2T, LV_VIT], ids=['vit', 'cait', 'pvt', 't2t-vit', 'lv-vit']
)
def test_classifiers_give_logits(backbone, tmp_path):
    deployed = DeployModel(build_classifier(backbone))
    assert export_onnx(deployed, tmp_path / 'model.onnx', (32, 16)) < 1e-5
    inputs = deployed.example(3, (32, 16), seed=7)
    (logits,) = onnx_session(tmp_path / 'model.onnx').run(None, as_numpy(inputs))
    assert logits.shape == (3, 5)
    np.testing.assert_allclose(logits, deployed(**inputs).detach(), rtol=1e-3, atol=1e-4)


def test_quantized_models_are_sent_to_their_own_tool(tmp_path):
    model = build(dict(VIT, quant_cfg=dict(type='OFQ', w_bits=4, a_bits=4)))
    with pytest.raises(OnnxExportError, match=r'tools/deployment/export_quantized\.py'):
        export_onnx(DeployModel(model), tmp_path / 'model.onnx', (32, 16))


@pytest.mark.parametrize(
    ('backbone', 'head', 'size', 'preprocess'),
    [(VIT, DCAL, (32, 16), True), (FUSED, BNNECK, (32, 16), False),
     (STVIT, BNNECK, (64, 32), False),
     (dict(VIT, sie=dict(num_cameras=4, num_views=3)), BNNECK, (32, 16), True)],
    ids=['dcal', 'mctf', 'stvit-deit', 'sie'],
)  # fmt: skip
def test_openvino_gives_the_same(backbone, head, size, preprocess, tmp_path):
    deployed = DeployModel(build(backbone, head), preprocess)
    onnx_file, path = tmp_path / 'model.onnx', tmp_path / 'ov' / 'model.xml'
    export_onnx(deployed, onnx_file, size)
    assert export_openvino(deployed, onnx_file, path, size) < 1e-5
    assert sorted(file.name for file in path.parent.iterdir()) == ['model.bin', 'model.xml']
    inputs = as_numpy(deployed.example(3, size, seed=7))
    (output,) = onnx_session(onnx_file).run(None, inputs)
    np.testing.assert_allclose(openvino_model(path)(inputs)[0], output, rtol=1e-3, atol=1e-4)


def test_openvino_files_that_differ_are_not_kept(tmp_path):
    deployed = DeployModel(Rounded())
    export_onnx(deployed, tmp_path / 'model.onnx', (8, 8))
    other = DeployModel(Rounded(shift=1.0))
    with pytest.raises(OpenvinoExportError, match='differs from the model by'):
        export_openvino(other, tmp_path / 'model.onnx', tmp_path / 'model.xml', (8, 8))
    (tmp_path / 'broken.onnx').write_bytes(b'none')
    with pytest.raises(OpenvinoExportError, match=r'can not convert .*broken\.onnx'):
        export_openvino(deployed, tmp_path / 'broken.onnx', tmp_path / 'model.xml', (8, 8))
    assert sorted(file.name for file in tmp_path.iterdir()) == ['broken.onnx', 'model.onnx']


def test_cameras_and_views_are_inputs_of_their_own(tmp_path):
    model = build(dict(VIT, sie=dict(num_cameras=4, num_views=3)))
    deployed = DeployModel(model)
    export_onnx(deployed, tmp_path / 'model.onnx', (32, 16))
    images = deployed.example(1, (32, 16))['images'].expand(2, -1, -1, -1)
    pairs = [(3, 1), (0, 2)]
    samples = [DataSample(camera_id=camera, view_id=view) for camera, view in pairs]
    cameras, views = np.array(pairs).T
    (output,) = onnx_session(tmp_path / 'model.onnx').run(
        None, {'images': images.numpy(), 'camera_ids': cameras, 'view_ids': views}
    )
    expected = model(images, samples).detach().numpy()
    np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-4)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2


def test_decoded_images_are_normalised_inside(tmp_path):
    model = build(VIT)
    deployed = DeployModel(model, preprocess=True)
    export_onnx(deployed, tmp_path / 'model.onnx', (32, 16))
    rgb = deployed.example(2, (32, 16))['images']
    # What a pipeline packs is BGR.
    packed = rgb.permute(0, 3, 1, 2).flip(1)
    inputs = model.data_preprocessor({'inputs': packed})['inputs']
    (output,) = onnx_session(tmp_path / 'model.onnx').run(None, {'images': rgb.numpy()})
    np.testing.assert_allclose(output, model(inputs).detach(), rtol=1e-3, atol=1e-4)
    (tensor,) = onnx.load(tmp_path / 'model.onnx').graph.input
    assert [d.dim_value for d in tensor.type.tensor_type.shape.dim] == [0, 32, 16, 3]


class Rounded(torch.nn.Module):
    """A model whose outputs are out of reach of any tolerance below one."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.backbone = self.head = torch.nn.Identity()
        self.shift = shift

    def forward(self, images, mode):
        return images.flatten(1)[:, :4] + self.shift


def test_a_file_that_differs_is_not_kept(tmp_path):
    with pytest.raises(OnnxExportError, match='differs from the model'):
        export_onnx(DeployModel(Rounded()), tmp_path / 'model.onnx', (8, 8), tolerance=-1)
    assert not list(tmp_path.iterdir())


class Branching(Rounded):
    def forward(self, images, mode):
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


def test_what_no_graph_can_hold_is_refused(tmp_path):
    with pytest.raises(OnnxExportError, match='Identity with Identity can not be written as ONNX'):
        export_onnx(DeployModel(Branching()), tmp_path / 'model.onnx', (8, 8))


def test_models_that_do_not_say_how_to_normalise():
    model = MODELS.build(dict(type='ReIdentifier', backbone=VIT, head=BNNECK, data_preprocessor={}))
    with pytest.raises(ValueError, match='no mean and std'):
        DeployModel(model, preprocess=True)
