"""Official checkpoints of STViT-R, and weights of DeiT for STViT-DeiT."""

import sys
import types

import pytest
import torch

from tests.conftest import run_tool
from vitdown.checkpoint import CheckpointError, load_checkpoint_file
from vitdown.converters import convert_state_dict, export_state_dict
from vitdown.models.backbones import STViTDeiT, STViTSwin

from .test_stvit import DEIT, STAGES, TINY, deit, randomise, swin


def classifier(**kwargs):
    """State dict of a classifier under vitdown's names."""
    model = swin(key_mode='released_cls', out_indices=(3,), **kwargs)
    weights = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    weights['head.fc.weight'] = torch.rand(5, 64)
    weights['head.fc.bias'] = torch.rand(5)
    return weights


def detector():
    model = swin()
    weights = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    weights['rpn_head.rpn_conv.weight'] = torch.rand(3, 3)
    return weights


@pytest.mark.parametrize(
    'make',
    [
        classifier,
        lambda: classifier(img_size=224, use_global_center=True, relative_pos=True, conv_pos=True),
        detector,
    ],
    ids=['classifier', 'options', 'detector'],
)
def test_round_trip(make):
    weights = make()
    official = export_state_dict(weights, 'stvit')
    prefix = 'backbone.' if 'head.fc.weight' not in weights else ''
    assert f'{prefix}layers.2.blocks.5.attn.kv.bias' in official
    assert f'{prefix}patch_embed.proj.2.c.weight' in official
    recomputed = {
        f'{prefix}layers.0.blocks.0.attn.relative_position_index': torch.zeros(49, 49),
        f'{prefix}layers.0.blocks.1.attn_mask': torch.zeros(4, 49, 49),
    }
    back = convert_state_dict({**official, **recomputed}, 'stvit')
    expected = {k for k in weights if not k.endswith('relative_position_index')}
    assert back.keys() == expected
    assert all(torch.equal(back[key], weights[key]) for key in back)


def test_patch_merging_in_the_order_of_mmcv():
    """Against the official concatenation of neighbours."""
    merging = swin().stages[0].downsample
    x = torch.rand(1, 4, 6, 8)
    official = {
        key: value
        for key, value in export_state_dict(detector(), 'stvit').items()
        if 'layers.0.downsample' in key
    }
    prefix = 'backbone.layers.0.downsample.'
    parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    merged = torch.cat(parts, dim=-1).flatten(1, 2)
    merged = torch.nn.functional.layer_norm(
        merged, (32,), official[prefix + 'norm.weight'], official[prefix + 'norm.bias']
    )
    out, size = merging(x.flatten(1, 2), (4, 6))
    assert size == (2, 3)
    torch.testing.assert_close(out, merged @ official[prefix + 'reduction.weight'].T)


def test_unknown_names_are_listed():
    official = export_state_dict(classifier(), 'stvit')
    with pytest.raises(ValueError, match='no weights layers.2.blocks.3.adapter'):
        convert_state_dict({**official, 'layers.2.blocks.3.adapter': torch.zeros(1)}, 'stvit')


def save_official(path, weights):
    """A file as the official code writes it, settings included."""
    module = types.ModuleType('yacs.config')
    module.CfgNode = type('CfgNode', (dict,), {'__module__': 'yacs.config'})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
        patch.setitem(sys.modules, 'yacs.config', module)
        settings = module.CfgNode(TRAIN=module.CfgNode(EPOCHS=300))
        settings.__dict__['immutable'] = True
        torch.save({'model': weights, 'epoch': 299, 'config': settings}, path)


def test_official_classifier_starts_a_detector(tmp_path):
    """The settings in the file do no harm; the norms of the other stages start anew."""
    path = tmp_path / 'official.pth'
    weights = classifier()
    save_official(path, export_state_dict(weights, 'stvit'))
    model = STViTSwin(
        TINY,
        out_indices=STAGES,
        init_cfg=dict(type='Pretrained', checkpoint=str(path), source='stvit'),
    )
    model.init_weights()
    own = model.state_dict()
    for key, value in weights.items():
        if key.startswith('backbone.'):
            torch.testing.assert_close(own[key.removeprefix('backbone.')], value, msg=key)
    assert (model.norm0.weight == 1).all()
    other = STViTSwin(
        {**TINY, 'depths': [1, 2, 6, 1]}, init_cfg=dict(model.init_cfg), out_indices=STAGES
    )
    with pytest.raises(CheckpointError, match='does not fit STViTSwin: missing: stages.1.blocks.1'):
        other.init_weights()


@pytest.mark.parametrize('official', [True, False], ids=['official', 'own'])
def test_own_classifier_starts_a_detector(tmp_path, official):
    """What was trained or converted here loads where a released file does."""
    weights = classifier()
    path = tmp_path / 'epoch_300.pth'
    content = export_state_dict(weights, 'stvit') if official else weights
    torch.save({'state_dict': content, 'meta': {}}, path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path), source='stvit')
    model = STViTSwin(TINY, out_indices=STAGES, init_cfg=init_cfg)
    model.init_weights()
    own = model.state_dict()
    loaded = {k.removeprefix('backbone.'): v for k, v in weights.items() if 'head' not in k}
    assert all(torch.equal(own[key], value) for key, value in loaded.items())
    deeper = STViTSwin({**TINY, 'depths': [1, 2, 12, 1]}, out_indices=STAGES, init_cfg=init_cfg)
    with pytest.raises(CheckpointError, match='does not fit STViTSwin: missing: stages.1.blocks.1'):
        deeper.init_weights()
    with pytest.raises(ValueError, match="Unknown source 'stvitt'"):
        STViTSwin(TINY, init_cfg=dict(init_cfg, source='stvitt')).init_weights()


def test_tool_converts_an_official_detector(tmp_path):
    path, out = tmp_path / 'detector.pth', tmp_path / 'own.pth'
    torch.save({'state_dict': export_state_dict(detector(), 'stvit'), 'meta': {}}, path)
    run_tool('tools/model_converters/convert.py', 'stvit', path, out)
    converted = load_checkpoint_file(out)['state_dict']
    assert all(torch.equal(converted[key], value) for key, value in detector_but_heads().items())
    assert 'rpn_head.rpn_conv.weight' in converted


def detector_but_heads():
    return {
        key: value
        for key, value in detector().items()
        if key.startswith('backbone.') and not key.endswith('relative_position_index')
    }


def test_deit_weights_load_by_name(tmp_path):
    import timm

    deit_weights = timm.create_model(
        'vit_tiny_patch16_224', img_size=32, patch_size=4, embed_dim=24, depth=6, mlp_ratio=2
    ).state_dict()
    path = tmp_path / 'deit.pth'
    torch.save({'model': deit_weights}, path)
    model = STViTDeiT(
        DEIT,
        img_size=(32, 16),
        patch_size=4,
        num_base=2,
        init_cfg=dict(type='Pretrained', checkpoint=str(path), source='deit'),
    )
    centers = model.global_center.clone()
    model.init_weights()
    for i in range(6):
        torch.testing.assert_close(
            model.layers[i].attn.qkv.weight, deit_weights[f'blocks.{i}.attn.qkv.weight']
        )
    assert model.pos_embed.shape == (1, 32, 24)
    torch.testing.assert_close(model.global_center, centers)
    assert centers.std().item() == pytest.approx(0.02, rel=0.3)


def test_own_checkpoints_load_strictly():
    for make in (swin, deit):
        model = make()
        other = randomise(make())
        other.load_state_dict(model.state_dict())
        images = torch.rand(1, 3, 32, 32)
        torch.testing.assert_close(other(images)[-1], model(images)[-1])
