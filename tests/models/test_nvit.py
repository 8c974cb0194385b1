import runpy

import pytest
import torch
from mmpretrain.structures import DataSample
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import ROOT
from vitdown.checkpoint import load_checkpoint_file
from vitdown.converters import convert_state_dict, export_state_dict
from vitdown.converters.nvit import nvit_arch
from vitdown.engine.complexity import get_flops
from vitdown.engine.launch import load_config
from vitdown.models.backbones import NViT, revit_arch
from vitdown.models.distillation import Distiller, FrozenTeacher, build_losses
from vitdown.models.layers import MultiheadAttention, PrunedLayerNorm
from vitdown.models.losses.nvit_distillation import cnn_distillation_loss, full_model_loss
from vitdown.registry import MODELS

ARCH = dict(
    embed_dims=24,
    num_layers=2,
    num_heads=[2, 3],
    qk_dims=[8, 4],
    v_dims=[4, 12],
    feedforward_channels=[16, 40],
)


def tiny(**kwargs):
    torch.manual_seed(0)
    model = NViT(**{'arch': ARCH, 'img_size': (32, 16), 'patch_size': 8, **kwargs})
    model.init_weights()
    return model.eval()


def cost(arch: str, token_scale: bool) -> tuple[int, int]:
    """Parameters and multiply-adds with a distillation token and two classifiers of 1000."""
    with torch.device('meta'):
        model = NViT(arch, with_dist_token=True, token_scale=token_scale)
        classifiers = 2 * 1000 * model.embed_dims
        flops = get_flops(model, (3, 224, 224))
    return flops.params + classifiers + 2000, flops.macs + classifiers


@pytest.mark.parametrize(
    ('arch', 'plain', 'scaled', 'gmacs'),
    [
        ('deit-base', 87338192, 87340568, 17.6568),
        ('deit-small', 22436432, 22438808, 4.6241),
        ('deit-tiny', 5910800, 5913176, 1.2610),
        ('revit-s', 23123280, 23125656, 4.7052),
        ('revit-t', 6155664, 6158040, 1.2896),
        ('revit-t-176', 5339136, 5341512, 1.1353),
    ],
)
def test_published_cost(arch, plain, scaled, gmacs):
    params, macs = cost(arch, token_scale=False)
    assert params == plain
    assert macs / 1e9 == pytest.approx(gmacs, abs=5e-5)
    assert cost(arch, token_scale=True)[0] == scaled


@pytest.mark.parametrize(
    ('arch', 'params', 'gmacs'),
    [
        ('proxy-b', 34.04, 6.795),
        ('proxy-h', 30.34, 6.195),
        ('proxy-s', 21.08, 4.193),
        ('proxy-t', 6.78, 1.297),
    ],
)
def test_stand_ins_cost_what_the_published_models_cost(arch, params, gmacs):
    found, macs = cost(arch, token_scale=True)
    assert found / 1e6 == pytest.approx(params, abs=0.005)
    assert macs / 1e9 == pytest.approx(gmacs, abs=5e-4)


def test_sizes_of_revit_s():
    arch = revit_arch(384)
    assert arch['num_heads'] == [10, 4, 4, *[8] * 6, 4, 4, 10]
    assert arch['qk_dims'] == [32, 16, 16, *[32] * 6, 16, 16, 32]
    assert arch['feedforward_channels'] == [1152] * 3 + [2304] * 6 + [1152] * 3


def test_scale_does_not_follow_what_is_left_of_a_query():
    assert {layer.attn.scale for layer in tiny().layers} == {0.125}
    assert tiny(qk_scale=0.3).layers[0].attn.scale == 0.3
    plain = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48)
    assert tiny(arch=plain).layers[0].attn.scale == pytest.approx(8**-0.5)


def test_equal_blocks_are_a_plain_vit():
    """NViT with the sizes of DeiT computes what the shared backbone computes."""
    from vitdown.models.backbones import VisionTransformer

    arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48)
    model = tiny(arch=arch)
    plain = VisionTransformer(arch=arch, img_size=(32, 16), patch_size=8).eval()
    plain.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 32, 16)
    torch.testing.assert_close(model(images)[-1], plain(images)[-1], rtol=0, atol=0)


def test_outputs_with_a_distillation_token():
    images = torch.rand(2, 3, 32, 16)
    model = tiny(with_dist_token=True)
    cls_token, dist_token = model(images)[-1]
    raw = tiny(with_dist_token=True, out_type='raw')(images)[-1]
    assert raw.shape == (2, 2 + 8, 24)
    torch.testing.assert_close(cls_token, raw[:, 0])
    torch.testing.assert_close(dist_token, raw[:, 1])
    assert tiny(with_dist_token=True, out_type='featmap')(images)[-1].shape == (2, 24, 4, 2)
    with pytest.raises(ValueError, match='with_dist_token=False'):
        model.forward_tokens(images)


def test_attention_weights_and_token_fusion_of_unequal_blocks():
    images = torch.rand(2, 3, 32, 16)
    model = tiny()
    plain = model.forward_tokens(images)
    explicit = model.forward_tokens(images, need_attention=True)
    torch.testing.assert_close(explicit.tokens, plain.tokens, rtol=1e-5, atol=1e-6)
    assert explicit.attentions[1].shape == (2, 9, 9)
    for policy in ('ToMe', 'MCTF'):
        fused = tiny(token_fusion=dict(type=policy, r=2), img_size=(64, 32))
        tokens = fused.forward_tokens(torch.rand(2, 3, 64, 32)).tokens
        assert tokens.shape[1] == fused.token_fusion.schedule(33)[-1] < 33


def test_token_factors_scale_queries_keys_and_values():
    model, plain = tiny(token_scale=True), tiny()
    plain.load_state_dict(model.state_dict(), strict=False)
    images = torch.rand(2, 3, 32, 16)
    torch.testing.assert_close(model(images)[-1], plain(images)[-1])
    scale = torch.rand(9, 1)
    with torch.no_grad():
        model.layers[0].attn.qkv.token_scale.copy_(scale)
    x = torch.rand(2, 9, 24)
    for own, other in zip(model.layers[0].attn.project_qkv(x), plain.layers[0].attn.project_qkv(x)):
        torch.testing.assert_close(own, other * scale)
    # A part of them as all of them
    query, key = model.layers[0].attn.project_qk(x)
    torch.testing.assert_close(query, model.layers[0].attn.project_qkv(x)[0])
    with pytest.raises(ValueError, match='set img_size'):
        model(torch.rand(1, 3, 48, 16))


def test_token_factors_and_positions_resize_on_load():
    small = tiny(token_scale=True, with_dist_token=True, img_size=32)
    with torch.no_grad():
        small.layers[1].attn.qkv.token_scale.copy_(torch.rand(18, 1))
    large = tiny(token_scale=True, with_dist_token=True, img_size=64)
    large.load_state_dict(small.state_dict())
    found = large.layers[1].attn.qkv.token_scale
    assert found.shape == (66, 1)
    torch.testing.assert_close(found[:2], small.layers[1].attn.qkv.token_scale[:2])
    assert large(torch.rand(1, 3, 64, 64))[-1][0].shape == (1, 24)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='nvit-b'), "Unknown arch 'nvit-b'"),
        (dict(arch={**ARCH, 'num_heads': [2, 3, 4]}), r'arch\.num_heads must be'),
        (dict(arch={**ARCH, 'v_dims': [0, 4]}), r'arch\.v_dims must be'),
        (dict(arch={k: v for k, v in ARCH.items() if k != 'num_heads'}), 'arch lacks num_heads'),
        (dict(arch=dict(embed_dims=24, num_layers=1, num_heads=5, feedforward_channels=8)),
         'give qk_dims and v_dims'),
        (dict(arch={**ARCH, 'qk_dim': 3}), "arch has no 'qk_dim'; its entries are .*qk_dims"),
        (dict(arch={**ARCH, 'num_heads': True}), r'arch\.num_heads must be an integer .* got True'),
        (dict(arch={**ARCH, 'num_heads': 2.0}), r'arch\.num_heads must be'),
        (dict(arch={**ARCH, 'num_layers': 0}), r'arch\.num_layers must be an integer of at least'),
        (dict(arch=3), 'arch must be a name or a dict of sizes, got 3'),
        (dict(ln_mode='exact'), 'give norm_dims'),
        (dict(norm_dims=24), 'give norm_dims'),
        (dict(ln_mode='wide'), "got 'wide'"),
        (dict(ln_mode='exact', norm_dims=8), 'below the 24 channels'),
        (dict(token_scale=True, token_fusion=dict(type='ToMe', r=1)), 'cannot follow fused tokens'),
    ],
)  # fmt: skip
def test_mistakes_get_one_message(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny(**kwargs)


def test_norm_of_a_pruned_token_is_that_of_the_wide_one():
    kept = torch.randperm(40)[:24].sort().values
    wide, narrow = torch.nn.LayerNorm(40), PrunedLayerNorm(24, norm_dims=40, eps=1e-5)
    with torch.no_grad():
        wide.weight.copy_(torch.rand(40))
        wide.bias.copy_(torch.rand(40))
        narrow.weight.copy_(wide.weight[kept])
        narrow.bias.copy_(wide.bias[kept])
    x = torch.zeros(3, 5, 40)
    x[..., kept] = 100 + torch.randn(3, 5, 24)
    torch.testing.assert_close(narrow(x[..., kept]), wide(x)[..., kept], rtol=1e-5, atol=1e-5)
    same = PrunedLayerNorm(24, norm_dims=24)
    x = torch.randn(3, 24)
    torch.testing.assert_close(same(x), torch.nn.functional.layer_norm(x, (24,)))
    assert narrow(torch.randn(2, 24).bfloat16()).dtype == torch.bfloat16


def classifier(**kwargs):
    backbone = dict(type='vitdown.NViT', arch=ARCH, img_size=32, patch_size=8, with_dist_token=True)
    head = dict(type='vitdown.DistilledClsHead', num_classes=5, in_channels=24, **kwargs)
    torch.manual_seed(0)
    model = MODELS.build(dict(type='mmpretrain.ImageClassifier', backbone=backbone, head=head))
    model.init_weights()
    return model


@pytest.mark.parametrize('loss_on', ['average', 'cls', 'both'])
def test_distilled_head_trains(loss_on):
    model = classifier(loss_on=loss_on)
    images = torch.rand(4, 3, 32, 32)
    samples = [DataSample().set_gt_label(i) for i in range(4)]
    losses = model(images, samples, mode='loss')
    losses['loss'].backward()
    cls_logits, dist_logits = model.head.logit_pair(model.extract_feat(images))
    target = torch.arange(4)
    expected = {
        'average': torch.nn.functional.cross_entropy((cls_logits + dist_logits) / 2, target),
        'cls': torch.nn.functional.cross_entropy(cls_logits, target),
        'both': torch.nn.functional.cross_entropy(
            torch.cat((cls_logits, dist_logits)), target.repeat(2)
        ),
    }
    assert losses['loss'].item() == pytest.approx(expected[loss_on].item(), rel=1e-4)
    grad = model.head.layers.head_dist.weight.grad
    assert (grad is None or not grad.any()) == (loss_on == 'cls')
    with pytest.raises(ValueError, match='loss_on must be'):
        classifier(loss_on='none')


def official_checkpoint(model) -> dict:
    """What NViT's authors save: weights, sizes and much else."""
    from argparse import Namespace

    backbone = model.backbone
    return dict(
        model=export_state_dict(model.state_dict(), 'nvit'),
        dim=dict(
            EMB=24,
            head=backbone.arch_settings['num_heads'],
            QK=backbone.arch_settings['qk_dims'],
            V=backbone.arch_settings['v_dims'],
            MLP=backbone.arch_settings['feedforward_channels'],
        ),
        args=Namespace(lr=1e-3),
        epoch=299,
    )


def test_official_checkpoint_builds_its_own_model(tmp_path):
    model = classifier().eval()
    torch.save(official_checkpoint(model), tmp_path / 'NViT_X.pth')
    content = load_checkpoint_file(tmp_path / 'NViT_X.pth')
    arch = nvit_arch(content)
    assert arch == {**ARCH, 'qk_scale': 0.125}
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'NViT_X.pth'), source='nvit')
    loaded = NViT(arch, img_size=32, patch_size=8, with_dist_token=True, init_cfg=init)
    loaded.init_weights()
    images = torch.rand(2, 3, 32, 32)
    for own, other in zip(loaded.eval()(images)[-1], model.backbone(images)[-1]):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
    with pytest.raises(ValueError, match="no entry 'dim'"):
        nvit_arch(dict(model=content['model']))
    with pytest.raises(ValueError, match=r"lack \['V'\]"):
        nvit_arch(dict(dim={k: v for k, v in content['dim'].items() if k != 'V'}))
    with pytest.raises(ValueError, match='not one of each block'):
        nvit_arch(dict(dim={**content['dim'], 'QK': [8]}))


def test_checkpoints_written_while_pruning_are_fused():
    """Weights with an axis of heads and factors of heads become ordinary ones."""
    heads, dims, emb = 2, 4, 8
    arch = dict(embed_dims=emb, num_layers=1, num_heads=heads, feedforward_channels=16)
    model = NViT(arch, img_size=16, patch_size=8, with_dist_token=True)
    model.init_weights()
    own = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    aligned = export_state_dict(own, 'nvit')
    factor = torch.tensor([[1.0], [0.5]])
    prefix = 'blocks.0.attn.'
    for part in 'QKV':
        for name in ('weight', 'bias'):
            value = aligned[f'{prefix}qkv.{part}.{name}']
            aligned[f'{prefix}qkv.{part}.{name}'] = value.view(heads, dims, -1).permute(
                1, 2, 0
            ) if name == 'weight' else value.view(heads, dims).T  # fmt: skip
    aligned[f'{prefix}qkv.head_mask.weight'] = factor
    for name in ('weight', 'bias'):
        value = aligned.pop(f'{prefix}proj.proj.{name}')
        if name == 'weight':
            value = value.view(emb, heads, dims).transpose(1, 2)
        aligned[f'{prefix}proj.{name}'] = value
    converted = convert_state_dict(aligned, 'nvit')
    assert converted.keys() == own.keys()
    rows = factor.expand(heads, dims).flatten().repeat(3)
    for key, value in converted.items():
        expected = own[key]
        if '.qkv.' in key:
            expected = expected * (rows[:, None] if expected.ndim == 2 else rows)
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_reid_model_trains_on_unequal_blocks():
    model = MODELS.build(
        dict(
            type='ReIdentifier',
            backbone=dict(type='NViT', arch=ARCH, img_size=(32, 16), patch_size=8),
            head=dict(type='DCALHead', num_classes=4, in_channels=24, num_heads=3),
        )
    )
    model.init_weights()
    samples = [DataSample().set_gt_label(i // 2) for i in range(8)]
    losses = model(torch.rand(8, 3, 32, 16), samples, mode='loss')
    losses['loss'].backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_converter_tool_writes_sizes_and_a_config(tmp_path, monkeypatch, capsys):
    source = classifier().eval()
    torch.save(official_checkpoint(source), tmp_path / 'NViT_X.pth')
    argv = ['convert', 'nvit', tmp_path / 'NViT_X.pth', tmp_path / 'out.pth']
    monkeypatch.setattr('sys.argv', [str(arg) for arg in argv])
    runpy.run_path(str(ROOT / 'tools/model_converters/convert.py'))['main']()
    assert f'model.backbone.arch = { ({**ARCH, "qk_scale": 0.125}) }' in capsys.readouterr().out
    content = load_checkpoint_file(tmp_path / 'out.pth')
    source.load_state_dict(content['state_dict'])
    assert content['meta']['arch'] == {**ARCH, 'qk_scale': 0.125}
    cfg = load_config(str(tmp_path / 'out.py'))
    assert cfg.load_from == str(tmp_path / 'out.pth')
    built = MODELS.build(cfg.model).eval()
    built.load_state_dict(content['state_dict'])
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(built(images), source(images))


def test_recipe_losses_through_the_distillation_hooks():
    """Both teachers at once: half of the labels, the CNN's classes, the full model's logits."""
    student, full = classifier(), classifier()
    with torch.no_grad():
        for parameter in full.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    cnn = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 5))
    heads = dict(cls='head.layers.head', dist='head.layers.head_dist')
    from_cnn = Distiller(
        student,
        build_losses(dict(loss_cnn=dict(type='CNNDistillationLoss'))),
        FrozenTeacher(cnn),
        dict(student_dist=heads['dist'], teacher_logits='1'),
    )
    sides = {
        f'{side}_{name}': path for side in ('student', 'teacher') for name, path in heads.items()
    }
    from_full = Distiller(
        student,
        build_losses(dict(loss_full=dict(type='FullModelLoss', temperature=3.0, per_head=False))),
        FrozenTeacher(full),
        sides,
    )
    images = torch.rand(4, 3, 32, 32)
    samples = [DataSample().set_gt_label(i) for i in range(4)]
    with from_cnn.record(images) as first, from_full.record(images) as second:
        losses = student(images, samples, mode='loss')
    for distiller in (from_full, from_cnn):
        losses = distiller.weigh(losses)
    losses = from_cnn.add_to(losses, first, samples)
    losses = from_full.add_to(losses, second, samples)
    with torch.no_grad():
        own = student.head.logit_pair(student.extract_feat(images))
        theirs = full.head.logit_pair(full.eval().extract_feat(images))
        expected = cnn_distillation_loss(own, torch.arange(4), cnn(images))
        kl = full_model_loss(own, theirs, 3.0)
    assert (losses['loss'] + losses['loss_cnn']).item() == pytest.approx(expected.item(), rel=1e-4)
    # 1e5 times the mean over the elements, for 1000 classes
    assert losses['loss_full'].item() == pytest.approx(100 * 5 * kl.item(), rel=1e-4)
    with pytest.raises(ValueError, match="'hard' or 'soft'"):
        build_losses(dict(loss_cnn=dict(type='CNNDistillationLoss', distill='firm')))


class CalledOperators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('dims', [(8, 4), (4, 8), (6, 6)])
def test_pruned_heads_run_through_the_fused_kernel(dims):
    attn = MultiheadAttention(24, 3, qk_dims=dims[0], v_dims=dims[1])
    tokens = torch.rand(2, 5, 24, requires_grad=True)
    with CalledOperators() as called:
        out, _ = attn(tokens)
    assert '_scaled_dot_product_flash_attention_for_cpu.default' in called.names
    expected, _ = attn(tokens, need_weights=True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        torch.autograd.grad(out.square().sum(), tokens),
        torch.autograd.grad(expected.square().sum(), tokens),
    )
