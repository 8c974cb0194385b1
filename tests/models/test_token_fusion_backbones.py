"""Token fusion inside of backbones and models."""

import argparse
import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch
from mmpretrain.models.backbones import DistilledVisionTransformer as MMPretrainDistilled
from mmpretrain.models.backbones import T2T_ViT
from mmpretrain.models.utils import MultiheadAttention as MMPretrainAttention
from mmpretrain.structures import DataSample

from vitdown.converters import convert_state_dict, export_state_dict
from vitdown.engine.complexity import get_flops
from vitdown.models import backbones
from vitdown.models.backbones import (
    CaiT,
    DistilledVisionTransformer,
    LVViT,
    PyramidVisionTransformer,
    STViTSwin,
    SwinTransformer,
    T2TViT,
    VisionTransformer,
)
from vitdown.models.heads.jpm_head import jigsaw_order
from vitdown.models.layers import attention_rollout
from vitdown.models.option_checks import TOKEN_FUSION_HINT
from vitdown.registry import MODELS

ARCH = dict(embed_dims=24, num_layers=4, num_heads=3, feedforward_channels=48)
POLICIES = {
    'tome': dict(type='ToMe', r=5),
    'mctf': dict(type='MCTF', r=5, min_tokens=2),
    'mctf-exact': dict(type='MCTF', r=5, min_tokens=2, attention='exact'),
    'mctf-previous': dict(type='MCTF', r=5, min_tokens=2, attention='previous'),
    'mctf-max': dict(type='MCTF', r=5, min_tokens=2, pooling='max'),
    'mctf-fast': dict(type='MCTF', r=0.35, layers=[1, 3], min_tokens=2),
}
every_policy = pytest.mark.parametrize('policy', POLICIES.values(), ids=POLICIES)


def randomize(model, std=0.3):
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def build(policy, cls=VisionTransformer, **kwargs):
    options = dict(arch=ARCH, img_size=32, patch_size=8, token_fusion=policy)
    return randomize(cls(**{**options, **kwargs}))


def images(batch=2, height=32, width=32):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@every_policy
@torch.no_grad()
def test_features_carry_sizes_and_sources(policy):
    model = build(policy)
    feats = model.forward_tokens(images())
    schedule = model.token_fusion.schedule(17)
    assert feats.tokens.shape == (2, schedule[-1], 24)
    assert feats.last_layer_input.shape == (2, schedule[-2], 24)
    for sizes, source, num in (
        (feats.sizes, feats.source, schedule[-1]),
        (feats.last_layer_sizes, feats.last_layer_source, schedule[-2]),
    ):
        assert source.shape == (2, 17)
        counts = torch.stack([torch.bincount(row, minlength=num) for row in source])
        assert torch.equal(counts.float(), sizes)
        assert (source[:, 0] == 0).all()
        assert (sizes[:, 0] == 1).all()
    assert torch.equal(feats.normed_tokens[:, 0], model(images())[-1])


@every_policy
@torch.no_grad()
def test_dense_outputs_are_unfused(policy):
    model = build(policy, out_type='featmap', out_indices=(1, 3))
    state = model.state_dict()
    maps = model(images())
    assert [tuple(m.shape) for m in maps] == [(2, 24, 4, 4)] * 2
    feats = model.forward_tokens(images())
    expected = feats.normed_tokens.take_along_dim(feats.source[..., None], dim=1)[:, 1:]
    assert torch.equal(maps[-1].flatten(2).transpose(1, 2), expected)

    model = build(policy, out_type='avg_featmap')
    model.load_state_dict(state, strict=False)
    weights = feats.sizes[:, 1:, None] / 16
    mean = (feats.normed_tokens[:, 1:] * weights).sum(dim=1)
    torch.testing.assert_close(model(images())[-1], model.ln2(mean))
    raw = build(policy, out_type='raw')(images())[-1]
    torch.testing.assert_close(raw, feats.normed_tokens)
    (tokens,) = build(policy, out_type='tokens')(images())
    assert torch.equal(tokens.source, feats.source)


@every_policy
@torch.no_grad()
def test_no_fusion_is_the_plain_model_bit_for_bit(policy):
    model, plain = build(policy), build(None)
    assert set(model.state_dict()) == set(plain.state_dict())
    expected = plain(images())[-1]
    assert torch.equal(model(images(), fusion_r=0)[-1], expected)
    with model.override_fusion(0):
        assert torch.equal(model(images())[-1], expected)
        assert model.forward_tokens(images()).source is None
    assert not torch.equal(model(images())[-1], expected)
    with pytest.raises(ValueError, match='fusion_r needs a backbone with token_fusion'):
        plain(images(), fusion_r=3)


@torch.no_grad()
def test_overrides_are_nested_and_each_backbones_own():
    model, other = build(POLICIES['mctf'], out_type='raw'), build(POLICIES['tome'])
    torch._dynamo.reset()
    compiled = torch.compile(model, backend='eager', fullgraph=True)

    def check(r):
        expected = model.token_fusion.schedule(17, r)[-1]
        for run in (model, compiled):
            assert run(images())[-1].shape[1] == expected, r
        assert other.forward_tokens(images()).tokens.shape[1] == other_expected

    other_expected = other.token_fusion.schedule(17)[-1]
    with model.override_fusion(3):
        check(3)
        with model.override_fusion(0):
            check(0)
            assert model(images(), fusion_r=1)[-1].shape[1] == 14
        check(3)
        with other.override_fusion(2):
            other_expected = other.token_fusion.schedule(17, 2)[-1]
            check(3)
        other_expected = other.token_fusion.schedule(17)[-1]
    check(None)


def test_override_holds_in_its_thread_alone():
    model = build(POLICIES['mctf'])

    def num_tokens():
        return model.forward_tokens(images()).tokens.shape[1]

    own, many, few = (model.token_fusion.schedule(17, r)[-1] for r in (None, 0, 1))
    assert len({own, many, few}) == 3
    with ThreadPoolExecutor(1) as thread:
        mine, theirs = model.override_fusion(0), model.override_fusion(1)
        mine.__enter__()
        thread.submit(theirs.__enter__).result()
        assert (num_tokens(), thread.submit(num_tokens).result()) == (many, few)
        mine.__exit__(None, None, None)
        assert (num_tokens(), thread.submit(num_tokens).result()) == (own, few)
        thread.submit(theirs.__exit__, None, None, None).result()
        assert (num_tokens(), thread.submit(num_tokens).result()) == (own, own)


@every_policy
@pytest.mark.parametrize('prop_attn', [True, False])
@torch.no_grad()
def test_attention_is_told_between_input_tokens(policy, prop_attn):
    model = build({**policy, 'prop_attn': prop_attn})
    full = model.forward_tokens(images(), need_attention=True)
    factors = model.forward_tokens(images(), need_attention='factors')
    torch.testing.assert_close(full.tokens, factors.tokens)
    for attention, (query, key) in zip(full.attentions, factors.attentions, strict=True):
        assert attention.shape == (2, 17, 17)
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 17))
        expected = (query @ key.transpose(-2, -1)).softmax(dim=-1).mean(dim=1)
        torch.testing.assert_close(attention, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        attention_rollout(full.attentions),
        attention_rollout(factors.attentions),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize('attention', ['previous', 'one_step_ahead', 'exact'])
@torch.no_grad()
def test_equal_patches_fuse_without_a_trace(attention):
    """With attention in proportion to size, fusing equal tokens changes nothing at all."""
    flat = images()[:, :, :1, :1].expand(-1, -1, 32, 32)

    def feature(**kwargs):
        policy = dict(type='MCTF', r=4, min_tokens=2, attention=attention, **kwargs)
        model = build(policy)
        model.pos_embed.zero_()
        return model(flat)[-1], model(flat, fusion_r=0)[-1]

    torch.testing.assert_close(*feature(), rtol=1e-4, atol=1e-4)
    fused, expected = feature(prop_attn=False)
    assert (fused - expected).abs().max() > 1e-2


@every_policy
def test_shapes_do_not_depend_on_values(policy):
    """Tensors without values have nothing that a host could wait for."""
    with torch.device('meta'):
        model = VisionTransformer(ARCH, 32, 8, token_fusion=policy)
        feats = model.forward_tokens(torch.empty(2, 3, 32, 32), partner=None)
    assert feats.tokens.shape[1] == model.token_fusion.schedule(17)[-1]


@pytest.mark.parametrize('name', ['tome', 'mctf'])
def test_compiles_into_one_graph(name):
    model = build(POLICIES[name]).train()
    model.zero_grad()
    expected = model(images())[-1]
    expected.square().sum().backward()
    gradient = model.layers[0].attn.qkv.weight.grad.clone()
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')(images())[-1]
    compiled.square().sum().backward()
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.layers[0].attn.qkv.weight.grad, gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ('name', 'dynamo'), [('mctf', True), ('mctf', False), ('mctf-max', False), ('tome', False)]
)
def test_exports_to_onnx_for_any_batch(name, dynamo, tmp_path):
    model = build(POLICIES[name], out_type='raw')
    path = tmp_path / 'model.onnx'
    if dynamo:
        batch = torch.export.Dim('batch', min=1, max=64)
        options = dict(dynamic_shapes=({0: batch},), verbose=False)
    else:
        options = dict(input_names=['images'], dynamic_axes={'images': {0: 'batch'}})
    torch.onnx.export(model, (images(),), path, dynamo=dynamo, **options)
    session = onnxruntime.InferenceSession(path)
    for size in (1, 5):
        (out,) = session.run(None, {session.get_inputs()[0].name: images(size).numpy()})
        expected = model(images(size))[-1].detach()
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


@every_policy
def test_checkpointed_layers_give_the_same_gradients(policy):
    gradients = []
    for with_cp in (False, True):
        model = build(policy, with_cp=with_cp).train()
        model(images())[-1].square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@every_policy
@torch.no_grad()
def test_rectangles_overlap_side_information_and_no_class_token(policy):
    options = dict(img_size=(32, 16), stride=6, sie=dict(num_cameras=3))
    model = build(policy, **options)
    assert model.patch_resolution == (5, 2)
    feats = model.forward_tokens(images(2, 32, 16), camera_ids=[0, 2])
    assert feats.sizes.sum(dim=1).tolist() == [11.0, 11.0]
    other = model.forward_tokens(images(2, 32, 16), camera_ids=[0, 1])
    torch.testing.assert_close(other.tokens[0], feats.tokens[0])
    assert not torch.allclose(other.tokens[1], feats.tokens[1])
    assert model.forward_tokens(images(1, 64, 48), camera_ids=[1]).source.shape == (1, 71)

    model = build(policy, with_cls_token=False, out_type='featmap')
    assert model(images())[-1].shape == (2, 24, 4, 4)
    assert model.forward_tokens(images()).sizes.sum(dim=1).tolist() == [16.0, 16.0]


@every_policy
@torch.no_grad()
def test_distillation_token_is_never_fused(policy):
    model = build(policy, DistilledVisionTransformer)
    feats = model.forward_tokens(images())
    assert feats.source[:, :2].tolist() == [[0, 1]] * 2
    assert (feats.sizes[:, :2] == 1).all()
    cls_token, dist_token = model(images())[-1]
    assert torch.equal(dist_token, feats.normed_tokens[:, 1])
    reference = MMPretrainDistilled(arch=ARCH, img_size=32, patch_size=8)
    reference.eval()
    reference.load_state_dict(model.state_dict())
    for ours, theirs in zip(model(images(), fusion_r=0)[-1], reference(images())[-1]):
        torch.testing.assert_close(ours, theirs)


HEADS = {
    'bnneck': dict(type='BNNeckHead'),
    'jpm': dict(type='JPMHead', num_groups=2),
    'dcal': dict(type='DCALHead', num_heads=3, feedforward_channels=48),
    'dcal-mean': dict(
        type='DCALHead', num_heads=3, feedforward_channels=48, glca=dict(pool='mean', ratio=0.5)
    ),
    'dcal-parallel': dict(
        type='DCALHead',
        num_heads=3,
        feedforward_channels=48,
        glca=dict(pool='mean', input='penultimate'),
        pwca=dict(pairing='inter', partner_stream='sa'),
    ),
}


@pytest.mark.parametrize('head', HEADS.values(), ids=HEADS)
@pytest.mark.parametrize('name', ['tome', 'mctf', 'mctf-exact', 'mctf-previous'])
def test_reidentifiers_learn_and_predict(head, name):
    config = dict(
        type='ReIdentifier',
        backbone=dict(
            type='VisionTransformer',
            arch=ARCH,
            img_size=32,
            patch_size=8,
            token_fusion=POLICIES[name],
            sie=dict(num_cameras=2),
        ),
        head=dict(num_classes=4, in_channels=24, **head),
    )
    model = randomize(MODELS.build(config)).train()
    samples = [DataSample(camera_id=i % 2).set_gt_label(i // 2) for i in range(8)]
    losses = model(images(8), samples, mode='loss')
    model.parse_losses(losses)[0].backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    features = [s.feature for s in model.eval()(images(8), samples, mode='predict')]
    alone = model(images(8)[3:4], samples[3:4], mode='predict')[0].feature
    torch.testing.assert_close(alone, features[3], rtol=1e-4, atol=1e-4)


FUSION_GMACS = {
    'deit-tiny': [1.2584, 1.1289, 0.9830, 0.8431, 0.8090, 0.7092, 0.6491, 0.6003, 0.8181, 0.7806,
                  0.7481, 0.9325, 0.7373, 0.6269],
    'deit-small': [4.6083, 4.1223, 3.6033, 3.0964, 2.9715, 2.6016, 2.3769, 2.1944, 2.9831, 2.8741,
                   2.7564, 3.4282, 2.7117, 2.2984],
    'deit-base': [17.5827, 15.7024, 13.7560, 11.8338, 11.3571, 9.9359, 9.0683, 8.3636, 11.3543,
                  10.9999, 10.5541, 13.1227, 10.3815, 8.7841],
}  # fmt: skip
PARAMETERS = {'deit-tiny': 5_717_416, 'deit-small': 22_050_664, 'deit-base': 86_567_656}
TABLE = [
    *(dict(type='MCTF', r=r) for r in (0, 4, 8, 12, 13, 16, 18, 20)),
    dict(type='MCTF', r=16, attention='exact'),
    dict(type='MCTF', r=16, attention='previous'),
    dict(type='MCTF', r=0.35, layers=[3, 6, 9]),
    *(dict(type='ToMe', r=r) for r in (8, 13, 16)),
]


def published_gmacs(model):
    """Multiply-adds of an image as fvcore counts them, with 5 for an element of a layer norm."""
    normed = []
    handles = [
        module.register_forward_hook(lambda *args: normed.append(args[2].numel()))
        for module in model.modules()
        if isinstance(module, torch.nn.LayerNorm)
    ]
    macs = get_flops(model, (3, 224, 224)).macs
    for handle in handles:
        handle.remove()
    return (macs + 5 * sum(normed)) / 1e9


@pytest.mark.parametrize('arch', FUSION_GMACS)
def test_cost_is_the_published_one(arch):
    with torch.device('meta'):
        backbone = VisionTransformer(arch)
        head = torch.nn.Linear(backbone.embed_dims, 1000)
    # Not on the meta device, whose operators are slower than those of a small model.
    backbone.to_empty(device='cpu')
    counts = [parameter.numel() for m in (backbone, head) for parameter in m.parameters()]
    assert sum(counts) == PARAMETERS[arch]
    for policy, expected in zip(TABLE, FUSION_GMACS[arch], strict=True):
        options = dict(explicit_map=True) if policy['type'] == 'MCTF' else {}
        backbone.token_fusion = MODELS.build(dict(policy, num_layers=12, **options))
        gmacs = published_gmacs(backbone) + head.weight.numel() / 1e9
        assert gmacs == pytest.approx(expected, rel=3e-4), policy


def test_fast_form_costs_little_more():
    """Values are mixed between N instead of N' tokens; nothing else is counted differently."""
    macs = []
    for explicit_map in (True, False):
        policy = dict(type='MCTF', r=16, explicit_map=explicit_map)
        with torch.device('meta'):
            macs.append(
                get_flops(VisionTransformer('deit-small', token_fusion=policy), (3, 224, 224)).macs
            )
    tokens = [197, 181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21]
    extra = sum(384 * (n**2 - m**2) for n, m in zip(tokens, tokens[1:]))
    assert macs[1] - macs[0] == extra
    assert macs[1] < 1.01 * macs[0]


def test_cost_of_lv_vit():
    with torch.device('meta'):
        model = MODELS.build(lv_vit(dict(type='MCTF')))
        assert sum(p.numel() for p in model.parameters()) == 26_151_824
        for r, expected in ((0, 6.6), (8, 4.9), (12, 4.2), (16, 3.6)):
            policy = dict(type='MCTF', r=r, num_layers=16, explicit_map=True)
            model.backbone.token_fusion = MODELS.build(policy)
            assert round(get_flops(model, (3, 224, 224)).macs / 1e9, 1) == expected


def lv_vit(policy, num_classes=1000, **kwargs):
    embed_dims = kwargs['arch']['embed_dims'] if 'arch' in kwargs else 384
    return dict(
        type='mmpretrain.ImageClassifier',
        data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor'),
        backbone=dict(type='vitdown.LVViT', out_type='tokens', token_fusion=policy, **kwargs),
        head=dict(type='vitdown.TokenLabelHead', num_classes=num_classes, in_channels=embed_dims),
    )


SMALL_LV_VIT = dict(arch={**ARCH, 'qkv_bias': False, 'skip_lam': 2.0}, img_size=32, patch_size=8)


@pytest.mark.parametrize('policy', [None, *POLICIES.values()], ids=['none', *POLICIES])
def test_lv_vit_learns_labels_of_tokens(policy):
    model = randomize(MODELS.build(lv_vit(policy, 5, **SMALL_LV_VIT)))
    samples = [DataSample().set_gt_label(label) for label in (1, 4)]
    feats = model.extract_feat(images())
    logits = model.head.patch_logits(feats)
    assert logits.shape == (2, 16, 5)
    score = model.head.head(feats[-1].normed_tokens[:, 0]) + 0.5 * logits.amax(dim=1)
    torch.testing.assert_close(model.head(feats), score)
    assert model.predict(images(), samples)[0].pred_score.shape == (5,)

    label = torch.nn.functional.one_hot(torch.tensor([1, 4]), 5).float()
    losses = model.loss(images(), samples)
    loss_token = -0.5 * (label[:, None] * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    torch.testing.assert_close(losses['loss_token'], loss_token)
    maps = torch.rand(2, 5, 4, 4).softmax(dim=1)
    for sample, token_score in zip(samples, maps):
        sample.set_field(token_score, 'token_score')
    losses = model.loss(images(), samples)
    target = maps.flatten(2).transpose(1, 2)
    loss_token = -0.5 * (target * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    torch.testing.assert_close(losses['loss_token'], loss_token)
    model.parse_losses(losses)[0].backward()
    samples[0].set_field(torch.rand(5, 2, 2), 'token_score')
    samples[1].set_field(torch.rand(5, 2, 2), 'token_score')
    with pytest.raises(ValueError, match=r'token_score of \(5, 2, 2\) does not fit 16 patches'):
        model.loss(images(), samples)


def test_patches_are_labelled_by_the_tokens_that_they_went_into():
    model = randomize(MODELS.build(lv_vit(POLICIES['mctf'], 5, **SMALL_LV_VIT)))
    head, feats = model.head, model.extract_feat(images())
    scores = head.aux_head(feats[-1].normed_tokens)
    places = feats[-1].source.tolist()
    expected = torch.stack([torch.stack([s[i] for i in p[1:]]) for s, p in zip(scores, places)])
    torch.testing.assert_close(head.patch_logits(feats), expected)

    # The loss meets every patch with the label of its own place.
    labels = torch.arange(32).view(2, 16) % 5
    maps = torch.nn.functional.one_hot(labels, 5).float().mT.unflatten(2, (4, 4))
    samples = [DataSample().set_gt_label(label) for label in (1, 4)]
    for sample, token_score in zip(samples, maps):
        sample.set_field(token_score, 'token_score')
    loss = 0.5 * torch.nn.functional.cross_entropy(expected.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(head.loss(feats, samples)['loss_token'], loss)


def test_jigsaw_cuts_the_patch_grid_and_not_the_fused_tokens():
    model = build(POLICIES['mctf'])
    head = MODELS.build(dict(type='JPMHead', num_classes=4, in_channels=24, num_groups=3))
    head.attach(model)
    head.init_from_backbone(model)
    feats = model.forward_tokens(images())
    assert not torch.equal(feats.last_layer_source, feats.source)
    features = head.features(feats)
    torch.testing.assert_close(features[0], feats.normed_tokens[:, 0])
    order = jigsaw_order(16)
    for image, (tokens, places) in enumerate(zip(feats.last_layer_input, feats.last_layer_source)):
        grid = [tokens[place] for place in places.tolist()]
        for group, feature in enumerate(features[1:]):
            run = [grid[0], *(grid[1 + i] for i in order[5 * group : 5 * group + 5])]
            expected = head.local_norm(head.local_layer(torch.stack(run)[None])[0][0, 0])
            torch.testing.assert_close(feature[image], expected, rtol=1e-4, atol=1e-5)


def test_residual_branches_of_lv_vit_are_halved():
    half, whole = (
        randomize(LVViT(**{**SMALL_LV_VIT, 'arch': {**SMALL_LV_VIT['arch'], 'skip_lam': lam}}))
        for lam in (2.0, 1.0)
    )
    whole.load_state_dict(half.state_dict())
    x = torch.randn(2, 17, 24)
    layer, other = half.layers[0], whole.layers[0]
    after_attention = x + 0.5 * other.attn(other.ln1(x))[0]
    expected = after_attention + 0.5 * other.ffn.layers(other.ln2(after_attention))
    torch.testing.assert_close(layer(x)[0], expected)


def test_t2t_vit_is_mmpretrains_but_for_the_scale():
    config = dict(num_layers=2, embed_dims=24)
    layer = dict(num_heads=3, feedforward_channels=48)
    reference = T2T_ViT(32, **config, layer_cfgs=layer, t2t_cfg=dict(token_dims=8))
    reference.eval()
    for module in reference.modules():
        if isinstance(module, MMPretrainAttention):  # divides by the scale it is given
            scale = (module.input_dims // module.num_heads) ** -0.5
            module.scaled_dot_product_attention = partial(
                torch.nn.functional.scaled_dot_product_attention, scale=scale
            )
    model = T2TViT({**config, **layer, 'qkv_bias': False}, img_size=32, token_dims=8).eval()
    weights = {
        name.replace('tokens_to_token.', 'patch_embed.')
        .replace('encoder.', 'layers.')
        .replace('norm.', 'ln1.'): value
        for name, value in reference.state_dict().items()
    }
    model.load_state_dict(weights)
    torch.testing.assert_close(model(images())[-1], reference(images())[-1])
    model.init_weights()
    torch.testing.assert_close(model.pos_embed, reference.pos_embed)
    model = T2TViT(ARCH, img_size=(64, 48), token_fusion=dict(type='MCTF', r=3, min_tokens=2))
    feats = model.forward_tokens(torch.randn(1, 3, 64, 48))
    assert feats.patch_resolution == (4, 3)
    assert feats.sizes.sum() == 13


@pytest.mark.parametrize(
    ('source', 'build_model'),
    [
        (
            'mctf',
            lambda: dict(type='vitdown.VisionTransformer', arch=ARCH, img_size=32, patch_size=8),
        ),
        ('t2t', lambda: dict(type='vitdown.T2TViT', arch={**ARCH, 'qkv_bias': False}, img_size=32)),
        ('lv-vit', lambda: dict(type='vitdown.LVViT', **SMALL_LV_VIT)),
        (
            'deit-distilled',
            lambda: dict(
                type='vitdown.DistilledVisionTransformer', arch=ARCH, img_size=32, patch_size=8
            ),
        ),
    ],
)
def test_weights_go_to_official_names_and_back(source, build_model):
    backbone = MODELS.build(build_model()).state_dict()
    heads = {
        't2t': ['layers.head'],
        'mctf': ['layers.head'],
        'lv-vit': ['head', 'aux_head'],
        'deit-distilled': ['layers.head', 'layers.head_dist'],
    }
    state = {f'backbone.{key}': value for key, value in backbone.items()}
    for name in heads[source]:
        state |= {f'head.{name}.weight': torch.rand(5, 24), f'head.{name}.bias': torch.rand(5)}
    exported = export_state_dict(state, source)
    assert {'blocks.0.mlp.fc1.weight', 'norm.bias', 'head.weight'} <= set(exported)
    expected = {
        't2t': 'tokens_to_token.attention1.mlp.fc2.bias',
        'mctf': 'patch_embed.proj.weight',
        'lv-vit': 'patch_embed.bn3.running_mean',
        'deit-distilled': 'head_dist.weight',
    }
    assert expected[source] in exported
    converted = convert_state_dict(exported, source)
    assert set(converted) == set(state)
    assert all(converted[key] is state[key] for key in state)


@pytest.mark.parametrize(
    ('config', 'error', 'message'),
    [
        (dict(token_fusion=dict(type='MCTP')), KeyError, 'MCTP is not in the'),
        (dict(token_fusion=dict(type='MCTF', rate=3)), TypeError, "unexpected keyword .* 'rate'"),
        (dict(token_fusion=dict(type='MCTF', layers=[4])), ValueError, 'the backbone has 4'),
        (
            dict(token_fusion=dict(type='MCTF', num_layers=4)),
            ValueError,
            'gets num_layers from the backbone; leave it out',
        ),
    ],
)
def test_mistakes_in_a_config_are_named(config, error, message):
    with pytest.raises(error, match=message):
        build(None, **config)


@pytest.mark.parametrize('cls', [CaiT, PyramidVisionTransformer, STViTSwin, SwinTransformer])
def test_backbones_without_token_fusion_say_so(cls):
    with pytest.raises(
        ValueError, match=f'{cls.__name__} .* and takes no token_fusion; vitdown.Vision'
    ):
        cls(token_fusion=dict(type='ToMe', r=2))


def test_hint_names_the_backbones_that_take_token_fusion():
    named = set(re.findall(r'\w+', TOKEN_FUSION_HINT)) & set(backbones.__all__)
    public = [getattr(backbones, name) for name in backbones.__all__]
    kin = {c.__name__ for c in public if isinstance(c, type) and issubclass(c, VisionTransformer)}
    assert named == kin - {'STViTDeiT'}
    for name in ('DistilledVisionTransformer', 'HybridVisionTransformer', 'NViT'):
        with pytest.raises(KeyError, match='MCTP is not in the'):
            getattr(backbones, name)(token_fusion=dict(type='MCTP'))


def test_other_stems_refuse_patch_options():
    with pytest.raises(ValueError, match=r"no patch embedding to configure: \['stride'\]"):
        T2TViT(stride=8)
    with pytest.raises(ValueError, match=r"\['stride'\] cannot be set"):
        LVViT(stride=8)


def test_official_checkpoints_load(tmp_path):
    """What the official training writes: options, EMA weights in a tuple, other states."""
    model = build(POLICIES['mctf'])
    official = export_state_dict(
        {f'backbone.{key}': value for key, value in model.state_dict().items()}, 'mctf'
    )
    content = {
        'model': {**official, 'head.weight': torch.rand(5, 24), 'head.bias': torch.rand(5)},
        'optimizer': {'state': {}, 'param_groups': []},
        'epoch': 39,
        'scaler': {},
        'args': argparse.Namespace(lr=1e-3, mctf_type=[16.0, 8.0], data_path=os.curdir),
        'state_dict_ema': ({key: value + 1 for key, value in official.items()},),
    }
    torch.save(content, tmp_path / 'mctf.pth')
    loaded = VisionTransformer(
        ARCH,
        32,
        8,
        token_fusion=POLICIES['mctf'],
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'mctf.pth'), source='mctf'),
    )
    loaded.init_weights()
    torch.testing.assert_close(loaded.eval()(images())[-1], model(images())[-1])
