import pytest
import torch
from safetensors.torch import save_file

from vitdown.checkpoint import CheckpointError, check_fit, load_checkpoint_file, unwrap_state_dict
from vitdown.converters import convert_state_dict, export_state_dict
from vitdown.models.backbones import VisionTransformer
from vitdown.registry import MODELS

ARCH = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=96)


def timm_vit(**kwargs):
    import timm

    return timm.create_model(
        'vit_tiny_patch16_224',
        **{'img_size': 32, 'patch_size': 8, 'embed_dim': 24, 'depth': 2, **kwargs},
    ).eval()


def tiny_vit(**kwargs):
    return VisionTransformer(**{'arch': ARCH, 'img_size': 32, 'patch_size': 8, **kwargs}).eval()


def strip(state_dict):
    return {k.removeprefix('backbone.'): v for k, v in state_dict.items() if 'backbone.' in k}


def test_timm_weights_give_timm_features():
    reference = timm_vit()
    model = tiny_vit()
    model.load_state_dict(strip(convert_state_dict(reference.state_dict(), 'timm')))
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            model(image)[-1], reference.forward_features(image)[:, 0], rtol=1e-4, atol=1e-5
        )


def test_timm_round_trip():
    weights = timm_vit().state_dict()
    back = export_state_dict(convert_state_dict(weights, 'timm'), 'timm')
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_layer_scale_and_pre_norm_have_names():
    weights = timm_vit(init_values=0.1, pre_norm=True, class_token=True).state_dict()
    converted = convert_state_dict(weights, 'timm')
    model = tiny_vit(layer_scale_init_value=0.1, pre_norm=True)
    check_fit(model, strip(converted))


def test_distilled_deit_loses_its_distillation_token():
    weights = timm_vit().state_dict()
    pos_embed = weights['pos_embed']
    distilled = {
        **weights,
        'pos_embed': torch.cat((pos_embed[:, :1], torch.zeros(1, 1, 24), pos_embed[:, 1:]), dim=1),
        'dist_token': torch.zeros(1, 1, 24),
        'head_dist.weight': torch.zeros(1000, 24),
        'head_dist.bias': torch.zeros(1000),
    }
    converted = convert_state_dict(distilled, 'deit')
    torch.testing.assert_close(converted['backbone.pos_embed'], pos_embed)
    assert not any('dist' in key for key in converted)


@pytest.mark.parametrize('head', ['BNNeckHead', 'JPMHead'])
def test_transreid_round_trip(head):
    cfg = dict(type=head, num_classes=5, in_channels=24)
    model = MODELS.build(
        dict(
            type='ReIdentifier',
            backbone=dict(
                type='VisionTransformer',
                arch=ARCH,
                img_size=32,
                patch_size=8,
                sie=dict(num_cameras=2),
            ),
            head=cfg,
        )
    )
    weights = model.state_dict()
    exported = export_state_dict(weights, 'transreid')
    assert 'base.sie_embed' in exported
    assert 'bottleneck.running_mean' in exported
    exported['base.fc.weight'] = torch.zeros(1000, 24)
    converted = convert_state_dict(exported, 'transreid')
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[key], weights[key]) for key in weights)


def test_unknown_names_are_listed():
    weights = {**timm_vit().state_dict(), 'blocks.0.adapter.weight': torch.zeros(1)}
    with pytest.raises(ValueError, match=r'no weights blocks\.0\.adapter\.weight'):
        convert_state_dict(weights, 'timm')
    with pytest.raises(ValueError, match="Unknown source 'tim'; choose from"):
        convert_state_dict({}, 'tim')


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_pretrained_weights_from_a_file(tmp_path, suffix):
    reference = timm_vit(img_size=64)
    path = tmp_path / f'weights.{suffix}'
    weights = {k: v.contiguous() for k, v in reference.state_dict().items()}
    if suffix == 'pth':
        torch.save({'model': {f'module.{k}': v for k, v in weights.items()}}, path)
    else:
        save_file(weights, path)
    model = tiny_vit(
        img_size=(32, 16),
        sie=dict(num_cameras=3),
        init_cfg=dict(type='Pretrained', checkpoint=str(path), source='timm'),
    )
    model.init_weights()
    torch.testing.assert_close(model.layers[1].attn.qkv.weight, weights['blocks.1.attn.qkv.weight'])
    assert model.pos_embed.shape == (1, 9, 24)


def test_pretrained_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(timm_vit(depth=1).state_dict(), path)
    model = tiny_vit(init_cfg=dict(type='Pretrained', checkpoint=str(path), source='timm'))
    with pytest.raises(CheckpointError, match='does not fit VisionTransformer: missing: layers.1'):
        model.init_weights()


def test_weights_that_cannot_be_downloaded():
    url = 'http://127.0.0.1:9/weights.pth'
    model = tiny_vit(init_cfg=dict(type='Pretrained', checkpoint=url, source='timm'))
    with pytest.raises(CheckpointError, match=r'Cannot download .*init_cfg\.checkpoint=FILE'):
        model.init_weights()


class Payload:
    """Unpickling an instance creates a file: what a hostile checkpoint could do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


def test_checkpoints_cannot_run_code(tmp_path):
    path, proof = tmp_path / 'hostile.pth', tmp_path / 'proof'
    torch.save({'state_dict': {}, 'extra': Payload(proof)}, path)
    with pytest.raises(CheckpointError, match='holds Python objects besides weights'):
        load_checkpoint_file(path)
    assert not proof.exists()


class Getter:
    """Unpickling an instance reaches for an attribute, the first step of many an exploit."""

    def __reduce__(self):
        return (getattr, (torch.nn.Module, '__init__'))


def test_checkpoints_cannot_reach_for_attributes(tmp_path):
    torch.save({'state_dict': {}, 'extra': Getter()}, tmp_path / 'hostile.pth')
    with pytest.raises(CheckpointError, match='holds Python objects besides weights'):
        load_checkpoint_file(tmp_path / 'hostile.pth')


@pytest.mark.parametrize('content', [b'', b'no checkpoint at all', None])
@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_damaged_checkpoints_are_named(tmp_path, content, suffix):
    path = tmp_path / f'torn.{suffix}'
    if content is None:
        weights = {'a': torch.rand(1000)}
        torch.save(weights, path) if suffix == 'pth' else save_file(weights, path)
        content = path.read_bytes()[:-500]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r'torn\.'):
        load_checkpoint_file(path)


def test_missing_and_empty_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing.pth does not exist'):
        load_checkpoint_file(tmp_path / 'nothing.pth')
    with pytest.raises(CheckpointError, match='No weights in the checkpoint'):
        unwrap_state_dict({'epoch': 3})
