"""DCAL in the re-identifier: branches, losses, inference and what must not be there."""

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.structures import DataSample

from tests.tensor_sizes import LargestTensor
from vitdown.checkpoint import CheckpointError, check_fit
from vitdown.engine.complexity import get_flops
from vitdown.models.backbones.vision_transformer import TokenFeatures
from vitdown.models.layers import pairwise, select_top_r
from vitdown.registry import MODELS

VIT = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=48),
    img_size=(32, 16),
    patch_size=4,
)
HEAD = dict(type='DCALHead', num_classes=4, in_channels=24, num_heads=3, feedforward_channels=48)


def build(head=None, **backbone):
    torch.manual_seed(0)
    model = MODELS.build(
        dict(type='ReIdentifier', backbone={**VIT, **backbone}, head={**HEAD, **(head or {})})
    )
    model.init_weights()
    return model


def batch(n=8):
    torch.manual_seed(1)
    samples = [DataSample().set_gt_label(i // 2) for i in range(n)]
    return torch.randn(n, 3, 32, 16), samples


@pytest.mark.parametrize('glca_input', ['last', 'penultimate'])
@pytest.mark.parametrize('pool', ['cls', 'mean'])
@pytest.mark.parametrize('stream', ['pwca', 'sa'])
def test_gradients_reach_every_parameter(glca_input, pool, stream):
    model = build(dict(glca=dict(input=glca_input, pool=pool), pwca=dict(partner_stream=stream)))
    losses = model(*batch(), mode='loss')
    loss, logs = model.parse_losses(losses)
    torch.testing.assert_close(loss, losses['loss'])
    for branch in ('sa', 'glca', 'pwca'):
        assert {f'{branch}_{x}' for x in ('id', 'metric', 'accuracy', 'log_var')} <= set(logs)
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0 or name.endswith('qkv.bias'), name


def test_total_is_the_weighted_sum_of_the_branches():
    losses = build()(*batch(), mode='loss')
    parts = [losses[f'{b}_{x}'] for b in ('sa', 'glca', 'pwca') for x in ('id', 'metric')]
    torch.testing.assert_close(losses['loss'], 0.5 * sum(parts))


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for with_cp in (False, True):
        model = build(dict(glca=dict(pool='mean')), with_cp=with_cp)
        images, samples = batch()
        torch.manual_seed(2)
        model(images.requires_grad_(), samples, mode='loss')['loss'].backward()
        gradients.append(model.backbone.layers[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize('stream', ['pwca', 'sa'])
def test_both_streams_run_as_if_alone(stream):
    model = build().eval()
    images, _ = batch(5)
    partner = torch.tensor([3, 0, 4, 2, 1])
    both = model.backbone.forward_tokens(images, partner=partner, partner_stream=stream)
    alone = model.backbone.forward_tokens(images)
    torch.testing.assert_close(both.tokens, alone.tokens)
    torch.testing.assert_close(both.last_layer_input, alone.last_layer_input)
    tokens, _ = model.backbone.embed_patches(images)
    pair = tokens
    for layer in model.backbone.layers:
        other = (pair if stream == 'pwca' else tokens)[partner]
        pair, _ = pairwise.pairwise_cross_attention(layer, pair, other)
        tokens, _ = layer(tokens)
    torch.testing.assert_close(both.pair_tokens, pair)
    torch.testing.assert_close(both.normed_pair_tokens, model.backbone.ln1(pair))


def test_images_of_a_swap_share_their_class_token_and_those_of_a_cycle_do_not():
    backbone = build().backbone
    images, _ = batch(4)
    swap = backbone.forward_tokens(images, partner=torch.tensor([1, 0, 3, 2])).pair_tokens[:, 0]
    torch.testing.assert_close(swap[0], swap[1])
    cycle = backbone.forward_tokens(images, partner=torch.tensor([1, 2, 3, 0])).pair_tokens[:, 0]
    assert (torch.cdist(cycle, cycle) + torch.eye(4)).min() > 1e-4


@pytest.mark.parametrize(('stream', 'reached'), [('sa', [2, 3]), ('pwca', [0, 1, 2, 3])])
def test_an_image_reaches_the_images_before_it_in_the_cycle(stream, reached):
    """One with the clean stream as partner; one a layer (three here) with the pair-wise stream."""
    backbone = build().backbone
    images, _ = batch(6)
    partner = torch.tensor([1, 2, 3, 4, 5, 0])

    def run(images):
        return backbone.forward_tokens(images, partner=partner, partner_stream=stream)

    changed = images.clone()
    changed[3] = torch.randn(3, 32, 16)
    before, after = run(images), run(changed)
    rows = (after.pair_tokens != before.pair_tokens).flatten(1).any(dim=1)
    assert rows.nonzero().flatten().tolist() == reached
    rows = (after.tokens != before.tokens).flatten(1).any(dim=1)
    assert rows.nonzero().flatten().tolist() == [3]


def test_attention_factors_give_the_attention():
    backbone = build().backbone
    images, _ = batch(2)
    maps = backbone.forward_tokens(images, need_attention=True)
    factors = backbone.forward_tokens(images, need_attention='factors')
    for expected, (query, key) in zip(maps.attentions, factors.attentions, strict=True):
        assert not query.requires_grad
        torch.testing.assert_close((query @ key.mT).softmax(-1).mean(1), expected)
    torch.testing.assert_close(maps.tokens, factors.tokens)


def test_class_token_feature_does_not_depend_on_the_selection():
    model = build(dict(glca=dict(ratio=0.1))).eval()
    images, samples = batch()
    feats = model.backbone.forward_tokens(images)
    expected = model.head.glca(feats)
    for ratio in (0.1, 0.5, 1.0):
        idx = select_top_r(torch.rand(8, 32), ratio)
        tokens = model.head.glca.tokens(feats, idx)
        torch.testing.assert_close(model.head.glca.norm(tokens[:, 0]), expected)
    mean = build(dict(glca=dict(ratio=0.1, pool='mean'))).eval()
    few = mean(images)
    mean.head.glca.ratio = 0.5
    assert not torch.allclose(mean(images), few)


def test_class_token_pooling_runs_neither_rollout_nor_local_rows(monkeypatch):
    model = build()
    assert 'need_attention' not in model.head.token_options(torch.arange(8))
    rows = []
    model.head.glca.block.ffn.register_forward_hook(lambda _, args, out: rows.append(out.shape[1]))
    monkeypatch.setattr(
        'vitdown.models.heads.glca_branch.attention_rollout_cls',
        lambda *_: pytest.fail('rollout was computed'),
    )
    model(*batch(), mode='loss')
    model.eval()(batch()[0])
    assert rows == [1, 1]


def test_nothing_of_pwca_runs_in_evaluation(monkeypatch):
    calls = []
    original = pairwise.two_stream_attention
    monkeypatch.setattr(
        'vitdown.models.layers.encoder_layer.two_stream_attention',
        lambda *args: calls.append(1) or original(*args),
    )
    model = build()
    passes = []
    model.backbone.layers[0].attn.qkv.register_forward_hook(
        lambda _, args, out: passes.append(len(out))
    )
    images, samples = batch()
    model(images, samples, mode='loss')
    assert (len(calls), passes) == (3, [16])
    model.eval()
    model(images, samples, mode='predict')
    model(images)
    losses = model(images, samples, mode='loss')
    assert (len(calls), passes[1:]) == (3, [8, 8, 8])
    assert not any(name.startswith('pwca') for name in losses)


def test_a_checkpoint_fits_with_and_without_pwca_and_the_weights_of_the_losses():
    """What is tested is the same: but for the weights of the losses, no branch leaves a trace."""
    models = {
        name: build(head)
        for name, head in {
            'all': {},
            'no pwca': dict(pwca=dict(enable=False)),
            'no weights': dict(loss_weighting=None),
        }.items()
    }
    images, _ = batch()
    for name, source in models.items():
        for parameter in source.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        expected = source.eval()(images)
        for other, target in models.items():
            state = source.state_dict()
            check_fit(target, state)
            names = set(target.state_dict())
            assert {n for n in names ^ set(state) if 'loss_weighting.log_vars' not in n} == set()
            missing, unexpected = target.load_state_dict(state, strict=False)
            assert unexpected == []
            assert set(missing) == names - set(state), (name, other)
            torch.testing.assert_close(target.eval()(images), expected)
    state = models['all'].state_dict()
    assert {n.rpartition('.')[2] for n in state if 'log_vars' in n} == {'sa', 'glca', 'pwca'}
    with pytest.raises(CheckpointError, match='unexpected: head.pwca.weight'):
        check_fit(models['all'], {**state, 'head.pwca.weight': torch.zeros(1)})


def test_pwca_leaves_the_running_statistics_alone():
    statistics = []
    for pwca in (dict(), None):
        model = build(dict(pwca=pwca))
        model(*batch(), mode='loss')
        bn = model.head.necks['sa'].bn
        statistics.append((bn.running_mean.clone(), bn.running_var.clone()))
        assert bn.num_batches_tracked == 1
    torch.testing.assert_close(*statistics)


def test_without_pwca_its_loss_and_weight_are_absent():
    model = build(dict(pwca=None))
    losses = model(*batch(), mode='loss')
    assert model.head.loss_weighting.tasks == ('sa', 'glca')
    assert not any(name.startswith('pwca') for name in losses)
    alone = build(dict(glca=None))
    losses = alone(*batch(), mode='loss')
    assert alone.head.loss_weighting.tasks == ('sa', 'pwca')
    assert alone.eval()(batch()[0]).shape == (8, 24)


@pytest.mark.parametrize('pool', ['cls', 'mean'])
def test_sa_alone_is_the_plain_backbone_bit_for_bit(pool):
    model = build(dict(glca=dict(pool=pool), infer_branch='sa')).eval()
    model.head.glca.register_forward_hook(lambda *_: pytest.fail('GLCA ran'))
    images, _ = batch()
    plain = MODELS.build(VIT)
    plain.load_state_dict(model.backbone.state_dict())
    assert torch.equal(model(images), plain.eval()(images)[-1])


def test_test_feature_concatenates_the_branches():
    images, _ = batch()
    parts = {b: build(dict(infer_branch=b)).eval()(images) for b in ('sa', 'glca', 'both')}
    assert parts['both'].shape == (8, 48)
    torch.testing.assert_close(parts['both'], torch.cat((parts['sa'], parts['glca']), dim=1))
    each = build(dict(normalize_parts=True)).eval()(images)
    expected = torch.cat((F.normalize(parts['sa']), F.normalize(parts['glca'])), dim=1)
    torch.testing.assert_close(each, expected)
    after = build(dict(neck_feat='after'))
    after.head.necks['glca'].bn.running_mean.fill_(1.0)
    torch.testing.assert_close(
        after.eval()(images)[:, 24:], after.head.necks['glca'](parts['glca'])
    )


@pytest.mark.parametrize(
    ('glca', 'copied'),
    [
        (dict(input='last'), False),
        (dict(input='penultimate'), True),
        (dict(input='penultimate', init='random'), False),
        (dict(input='last', init='copy'), True),
    ],
)
def test_where_the_glca_block_starts(glca, copied):
    model = build(dict(glca=glca))
    last = model.backbone.layers[-1].attn.qkv.weight
    assert torch.equal(model.head.glca.block.attn.qkv.weight, last) == copied


SMALL = VIT['arch']


@pytest.mark.parametrize(
    'backbone',
    [
        dict(),
        dict(layer_scale_init_value=0.1),
        dict(qk_scale=0.3, layer_cfgs=dict(act_cfg=dict(type='ReLU'))),
        dict(arch={**SMALL, 'qkv_bias': False}, norm_cfg=dict(type='LN', eps=1e-2)),
        dict(arch={**SMALL, 'num_heads': 2, 'feedforward_channels': 36}),
        dict(final_norm=False, drop_path_rate=0.5, drop_rate=0.5),
        dict(type='DeiT3', layer_scale_init_value=0.1),
        dict(type='LVViT', arch={**SMALL, 'skip_lam': 2.0}),
        dict(type='NViT', arch={**SMALL, 'qk_dims': [8, 8, 4], 'num_heads': [3, 3, 2],
             'v_dims': 8}),
        dict(type='NViT', arch=SMALL, ln_mode='exact', norm_dims=32),
    ],
    ids=['plain', 'layer-scale', 'scale', 'norm', 'sizes', 'no-norm', 'deit3', 'lvvit', 'nvit',
         'nvit-exact'],
)  # fmt: skip
def test_a_copy_parallel_to_the_last_layer_gives_its_feature(backbone):
    torch.manual_seed(0)
    head = dict(type='DCALHead', num_classes=4, in_channels=24, glca=dict(input='penultimate'))
    model = MODELS.build(dict(type='ReIdentifier', backbone={**VIT, **backbone}, head=head))
    for parameter in model.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.head.init_from_backbone(model.backbone)
    sa, glca = model.eval()(batch()[0]).chunk(2, dim=1)
    assert sa.std() > 0.1
    torch.testing.assert_close(glca, sa)


def test_the_glca_block_is_of_the_backbones_kind():
    """Also one that starts at random; layer scale would hold it back, dropout is SA's own."""
    arch = dict(embed_dims=24, num_layers=1, num_heads=2, feedforward_channels=36, qkv_bias=False)
    backbone = {**VIT, 'arch': arch, 'qk_scale': 0.7, 'layer_scale_init_value': 1e-5,
                'drop_path_rate': 0.5}  # fmt: skip
    head = dict(type='DCALHead', num_classes=4, in_channels=24)

    def block(**options):
        cfg = dict(type='ReIdentifier', backbone=backbone, head={**head, **options})
        return MODELS.build(cfg).head.glca.block

    found = block()
    assert (found.attn.num_heads, found.attn.scale, found.attn.qkv.bias) == (2, 0.7, None)
    assert found.ffn.feedforward_channels == 36
    assert isinstance(found.attn.gamma1, torch.nn.Identity)
    assert found.attn.out_drop.drop_prob == 0
    other = block(num_heads=4, feedforward_channels=12, glca=dict(layer_cfg=dict(qkv_bias=True)))
    assert (other.attn.num_heads, other.attn.scale) == (4, 6**-0.5)
    assert other.attn.qkv.bias is not None
    assert other.ffn.feedforward_channels == 12


@pytest.mark.parametrize('glca_input', ['last', 'penultimate'])
@pytest.mark.parametrize('pool', ['cls', 'mean'])
def test_fused_tokens_count_as_the_patches_they_hold(glca_input, pool):
    """GLCA over fused tokens is GLCA over the tokens of all patches, each patch its token's."""
    options = dict(glca=dict(input=glca_input, pool=pool))
    model = build(options, token_fusion=dict(type='ToMe', r=6)).eval()
    with torch.no_grad():
        feats = model.backbone.forward_tokens(batch()[0], need_attention='factors')
    assert feats.tokens.shape[1] == 33 - 3 * 6
    spread = TokenFeatures(
        tokens=feats.tokens.take_along_dim(feats.source[..., None], dim=1),
        normed_tokens=feats.normed_tokens,
        last_layer_input=feats.last_layer_input.take_along_dim(
            feats.last_layer_source[..., None], dim=1
        ),
        patch_resolution=feats.patch_resolution,
        attentions=feats.attentions,
    )
    glca = model.head.glca
    idx = glca.select(feats)
    assert idx.shape == (8, int(0.3 * 32))
    torch.testing.assert_close(glca.tokens(feats, idx), glca.tokens(spread, idx))
    torch.testing.assert_close(glca(feats), glca(spread))


def test_token_fusion_trains_with_all_branches():
    model = build(dict(glca=dict(pool='mean')), token_fusion=dict(type='ToMe', r=6))
    losses = model(*batch(), mode='loss')
    assert {'sa_id', 'glca_id', 'pwca_id'} <= set(losses)
    losses['loss'].backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name


def test_pwca_costs_nothing_at_inference():
    macs = [get_flops(build(dict(pwca=p)), (3, 32, 16)).macs for p in (dict(), None)]
    assert macs[0] == macs[1]


def test_losses_may_be_added_as_they_are():
    model = build(dict(loss_weighting=None))
    losses = model(*batch(), mode='loss')
    parts = [losses[f'{b}_{x}'] for b in ('sa', 'glca', 'pwca') for x in ('id', 'metric')]
    torch.testing.assert_close(losses['loss'], sum(parts))
    assert not any('log_var' in name for name in (*losses, *model.state_dict()))


def test_pairs_follow_the_labels_and_the_stream_that_is_set():
    model = build(dict(pwca=dict(pairing='inter', partner_stream='sa')))
    labels = torch.arange(8) // 2
    options = model.head.token_options(labels)
    assert (labels[options['partner']] != labels).all()
    assert options['partner_stream'] == 'sa'
    images, samples = batch()
    feats = model.extract_feat(images, samples, labels)
    options = dict(partner=torch.arange(8), partner_stream='sa')
    own = model.backbone.forward_tokens(images, **options)
    assert not torch.allclose(feats.pair_tokens, own.pair_tokens)


@pytest.mark.parametrize('train', [True, False])
def test_the_selection_keeps_no_attention_between_all_tokens(train):
    model = build(dict(glca=dict(pool='mean', ratio=0.1))).train(train)
    images, samples = batch()
    with LargestTensor(ends=(33, 33)) as largest:
        model(images, samples, mode='loss' if train else 'predict')
    # Of one head at a time, for the rollout; neither kept nor computed for the features
    assert largest.numel == 8 * 33 * 33


def test_side_information_and_overlapping_patches_work_with_pairs():
    model = build(stride=3, sie=dict(num_cameras=2))
    images, samples = batch()
    for i, sample in enumerate(samples):
        sample.set_metainfo(dict(camera_id=i % 2))
    model(images, samples, mode='loss')['loss'].backward()
    assert model.backbone.sie.embed.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ('head', 'message'),
    [
        (dict(task='detection'), "task must be 'reid' or 'fgvc'"),
        (dict(infer_branch='pwca'), "infer_branch must be 'both', 'sa' or 'glca'"),
        (dict(glca=None, infer_branch='glca'), 'needs the GLCA branch'),
        (dict(glca=dict(ratio=0.0)), r'glca.ratio must be a number in \(0, 1\]'),
        (dict(glca=dict(input='first')), 'glca.input must be one of'),
        (dict(glca=dict(pool='max')), 'glca.pool must be one of'),
        (dict(glca=dict(init='zero')), 'glca.init must be one of'),
        (dict(glca=dict(num_blocks=2)), r'glca.num_blocks must be one of \(1,\), got 2'),
        (dict(glca=dict(blocks=1)), r"__init__\(\) got an unexpected keyword argument 'blocks'"),
        (dict(glca=False), 'glca must be a dict, or None for none, got False'),
        (dict(pwca=False), 'pwca must be a dict, or None for none, got False'),
        (dict(loss_weighting=False), 'loss_weighting must be a dict, or None for none, got False'),
        (dict(loss_weighting=dict(w_min='-4')), "init and w_min must be numbers, got .* '-4'"),
        (dict(loss_weighting=dict(init=None)), 'init and w_min must be numbers, got None'),
        (dict(normalize_parts='False'), "normalize_parts must be True or False, got 'False'"),
        (dict(glca=dict(ratio=True)), 'glca.ratio must be a number .* got True'),
        (dict(glca=dict(ratio='0.3')), "glca.ratio must be a number .* got '0.3'"),
        (dict(glca=dict(num_heads=3)), r"\['num_heads'\] are given twice: leave them out of glca"),
        (dict(pwca=dict(on=True)), r"__init__\(\) got an unexpected keyword argument 'on'"),
        (dict(pwca=dict(enable='False')), "pwca.enable must be .* got 'False'"),
        (dict(pwca=dict(pairing='same')), 'pwca.pairing must be'),
        (dict(pwca=dict(partner_stream='glca')), 'pwca.partner_stream must be'),
        (dict(loss_weighting=dict(type='UncertaintyWeightedLoss', tasks=['sa'])),
         r"tasks are the branches that learn, \['sa', 'glca', 'pwca'\]: leave it out"),
        (dict(num_heads=4, glca=dict(input='penultimate')), r'num_heads=4 \(there 3\)'),
        (dict(feedforward_channels=96, glca=dict(init='copy')),
         r'feedforward_channels=96 \(there 48\)'),
        (dict(glca=dict(init='copy', layer_cfg=dict(qkv_bias=False))),
         r"qkv_bias=False \(there True\): leave that out, or set glca.init='random'"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(head, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(head)


def test_weights_of_the_losses_need_no_type():
    assert build(dict(loss_weighting=dict(w_min=-4))).head.loss_weighting.w_min == -4


def test_heads_of_the_block_may_be_set_among_its_options():
    head = {k: v for k, v in HEAD.items() if k != 'num_heads'}
    cfg = dict(type='ReIdentifier', backbone=VIT, head={**head, 'glca': dict(num_heads=4)})
    assert MODELS.build(cfg).head.glca.block.attn.num_heads == 4


def test_partners_of_mixed_images_follow_their_main_identity():
    head = build(dict(pwca=dict(pairing='intra'))).head.train()
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    mixed = 0.7 * torch.eye(4)[labels] + 0.3 * torch.eye(4)[3 - labels]
    partner = head.token_options(mixed)['partner']
    assert torch.equal(labels[partner], labels)


def test_a_backbone_without_class_token_is_refused():
    with pytest.raises(ValueError, match='set with_cls_token=True in the backbone'):
        build(with_cls_token=False, out_type='raw')


def test_factors_of_the_tokens_are_not_copied():
    model = build(dict(glca=dict(input='penultimate')), type='NViT', token_scale=True)
    torch.nn.init.constant_(model.backbone.layers[-1].attn.qkv.token_scale, 0.5)
    with pytest.raises(ValueError, match="cannot copy the factors .* set glca.init='random'"):
        model.head.init_from_backbone(model.backbone)


def test_a_batch_of_one_has_no_partner():
    with pytest.raises(ValueError, match='at least 2 images in a batch, got 1'):
        build()(*batch(1), mode='loss')


@pytest.mark.parametrize(
    ('arch', 'size', 'backbone', 'class_token', 'local_rows', 'params'),
    [
        ('deit-tiny', (256, 128), 0.780, 0.010, 0.026, 0.445),
        ('deit-small', (256, 128), 2.930, 0.040, 0.099, 1.775),
        ('base', (256, 128), 11.339, 0.158, 0.390, 7.089),
        ('base', (256, 256), 23.197, 0.309, 0.788, 7.089),
    ],
)
def test_cost(arch, size, backbone, class_token, local_rows, params):
    """Multiply-adds (G) and parameters (M) that follow from the sizes, for 1 and 1 + R rows."""
    with torch.device('meta'):
        vit = MODELS.build(dict(type='VisionTransformer', arch=arch, img_size=size))
        head = MODELS.build(dict(type='DCALHead', num_classes=4, in_channels=vit.embed_dims))
        head.attach(vit)
        num_patches = vit.patch_resolution[0] * vit.patch_resolution[1]
        idx = torch.zeros(1, int(0.3 * num_patches), dtype=torch.long)
        tokens = (1 + num_patches, vit.embed_dims)
    assert get_flops(vit, (3, *size)).macs / 1e9 == pytest.approx(backbone, abs=5e-4)
    block = head.glca.block
    assert get_flops(block, (1, 1, *tokens), lambda x: block(x[0])).macs / 1e9 == pytest.approx(
        class_token, abs=5e-4
    )
    with_rows = get_flops(block, (1, 1, *tokens), lambda x: block(x[0], idx))
    assert with_rows.macs / 1e9 == pytest.approx(local_rows, abs=5e-4)
    assert sum(p.numel() for p in head.glca.parameters()) / 1e6 == pytest.approx(params, abs=5e-4)


@pytest.mark.parametrize('pool', ['cls', 'mean'])
def test_mixed_precision(pool):
    model = build(dict(glca=dict(pool=pool)))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model(*batch(), mode='loss')
    assert losses['loss'].dtype == torch.float32
    exact = build(dict(glca=dict(pool=pool)))
    torch.manual_seed(1)
    torch.testing.assert_close(
        losses['glca_id'].float(),
        exact(*batch(), mode='loss')['glca_id'],
        rtol=0.05,
        atol=0.05,
    )
    losses['loss'].backward()


def test_it_learns():
    """A few steps on fixed images: losses fall, weights follow them, a partner makes it harder."""
    model = build(dict(glca=dict(pool='mean')))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    images, samples = batch()
    history = []
    for _ in range(40):
        losses = model(images, samples, mode='loss')
        optimizer.zero_grad()
        losses['loss'].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    first, last = history[0], history[-1]
    assert last['loss'] < 0.5 * first['loss']
    for branch in ('sa', 'glca', 'pwca'):
        assert first[f'{branch}_log_var'] == 0
        assert last[f'{branch}_id'] < 0.6 * first[f'{branch}_id'], branch
    assert last['sa_log_var'] < 0
    assert last['glca_log_var'] < 0
    assert last['pwca_accuracy'] <= last['sa_accuracy'] == 1
