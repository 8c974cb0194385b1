"""Checks of the reference files of DCAL: rollout, blocks, loss weighting and whole models."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vitdown.converters.renaming import rename
from vitdown.converters.timm import BACKBONE_PAIRS, LAYER_PAIRS, with_prefix
from vitdown.models.backbones import VisionTransformer
from vitdown.models.heads import DCALHead
from vitdown.models.layers import (
    GLCABlock,
    TransformerEncoderLayer,
    attention_rollout,
    attention_rollout_cls,
    pairwise_cross_attention,
    select_top_r,
)
from vitdown.models.losses import UncertaintyWeightedLoss

from .dcal_kinds_model import backbone_config, compare_gradients
from .golden import GoldenFile


def block_config(config: dict) -> dict:
    """Arguments of an encoder layer for a file's settings."""
    return dict(
        embed_dims=config['embed_dims'],
        num_heads=config['num_heads'],
        feedforward_channels=int(config['embed_dims'] * config['mlp_ratio']),
        qkv_bias=config['qkv_bias'],
        qk_scale=config['qk_scale'],
        drop_rate=config['drop_rate'],
        attn_drop_rate=config['attn_drop_rate'],
        drop_path_rate=config['drop_path_rate'],
        norm_cfg=dict(type='LN', eps=config['norm_eps']),
    )


def load_renamed(module: torch.nn.Module, weights: dict[str, Tensor], pairs) -> dict[str, str]:
    """Load weights under the reference's names; returns reference name -> own name."""
    names = {key: next(iter(rename({key: value}, pairs, 'DCAL'))) for key, value in weights.items()}
    missing, unexpected = module.load_state_dict(
        {names[key]: value for key, value in weights.items()}, strict=False
    )
    assert not unexpected
    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    assert [key for key in missing if not key.endswith(statistics) and 'log_vars' not in key] == []
    return names


def compare_parameter_gradients(
    golden: GoldenFile, module: torch.nn.Module, names: dict[str, str]
) -> None:
    parameters = dict(module.named_parameters())
    compare_gradients(golden, {key: parameters[name].grad for key, name in names.items()})


def check_rollout(golden: GoldenFile) -> None:
    config = golden.config
    attns = golden.tensor('attn')
    assert len(attns) == config['num_layers']
    rollout = attention_rollout(attns.unbind(), config['residual'])
    golden.compare('rollout', rollout)
    scores = attention_rollout_cls(attns.unbind(), config['residual'])[:, 1:]
    golden.compare('cls_scores', scores)
    for found in (rollout[:, 0, 1:], scores):
        idx = select_top_r(found, config['ratio'])
        golden.compare('topr_idx', idx)
        golden.compare('num_local', torch.tensor(idx.shape[1]))


def check_pwca_block(golden: GoldenFile) -> None:
    layer = TransformerEncoderLayer(**block_config(golden.config))
    names = load_renamed(layer, golden.tensors('sd/'), LAYER_PAIRS)
    x1, x2 = golden.tensor('x1').requires_grad_(), golden.tensor('x2').requires_grad_()
    fast, _ = layer(x1)
    out, weights = layer(x1, need_weights=True)
    golden.compare('sa_out', fast)
    golden.compare('sa_out', out)
    golden.compare('sa_attn', weights)
    out, weights = pairwise_cross_attention(layer, x1, x2, need_weights=True)
    golden.compare('pwca_out', out)
    golden.compare('pwca_attn', weights)
    out, _ = pairwise_cross_attention(layer, x1, x2)
    golden.compare('pwca_out', out)
    # Both streams in one pass, with the partners behind the images.
    batch = len(x1)
    partner = torch.arange(2 * batch).roll(batch)
    tokens = torch.cat((x1, x2)).repeat(2, 1, 1)
    stacked, _ = layer(tokens, partner=partner)
    golden.compare('pwca_out', stacked[2 * batch : 3 * batch])
    (out * golden.tensor('grad_out')).sum().backward()
    golden.compare('grad_x1', x1.grad)
    golden.compare('grad_x2', x2.grad)
    compare_parameter_gradients(golden, layer, names)


def check_glca_block(golden: GoldenFile) -> None:
    config = golden.config
    module = torch.nn.ModuleDict(
        dict(
            block=GLCABlock(**block_config(config)),
            norm=torch.nn.LayerNorm(config['embed_dims'], eps=config['norm_eps']),
        )
    )
    pairs = [*with_prefix(LAYER_PAIRS, own='block.'), ('glca_norm.{p}', 'norm.{p}')]
    names = load_renamed(module, golden.tensors('sd/'), pairs)
    x = golden.tensor('x').requires_grad_()
    idx = golden.tensor('idx')
    assert idx.shape[1] == config['num_local']
    out, weights = module['block'](x, idx, need_weights=True)
    golden.compare('glca_out', out)
    golden.compare('glca_attn', weights)
    out = module['block'](x, idx)
    golden.compare('glca_out', out)
    normed = module['norm'](out)
    golden.compare('glca_normed', normed)
    golden.compare('feat_cls', normed[:, 0])
    golden.compare('feat_mean', normed[:, 1:].mean(dim=1))
    golden.compare('feat_cls', module['norm'](module['block'](x))[:, 0])
    (out * golden.tensor('grad_out')).sum().backward()
    golden.compare('grad_x', x.grad)
    compare_parameter_gradients(golden, module, names)


def weight_gradients(weighting: UncertaintyWeightedLoss) -> Tensor:
    return torch.stack([w.grad for w in weighting.log_vars.values()])


def check_uncertainty(golden: GoldenFile) -> None:
    def weigh(w: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        tasks = [f'task{i}' for i in range(len(w))]
        weighting = UncertaintyWeightedLoss(tasks, w.tolist(), golden.config['w_min'])
        total, logs = weighting(dict(zip(tasks, losses)))
        total.backward()
        assert list(logs) == tasks
        return total.detach(), weight_gradients(weighting)

    losses = golden.tensor('losses').requires_grad_()
    results = [weigh(w, loss) for w, loss in zip(golden.tensor('w'), losses)]
    golden.compare('total', torch.stack([total for total, _ in results]))
    golden.compare('grad_w', torch.stack([grad for _, grad in results]))
    golden.compare('grad_losses', losses.grad)
    num_second = golden.config['num_tasks_second']
    results = [weigh(w, loss[:num_second]) for w, loss in zip(golden.tensor('w2'), losses)]
    golden.compare('total2', torch.stack([total for total, _ in results]))


MODEL_PAIRS = [
    *with_prefix(LAYER_PAIRS, 'glca.block.', 'head.glca.block.'),
    ('glca.norm.{p}', 'head.glca.norm.{p}'),
    ('glca.head.{p}', 'head.necks.glca.classifier.{p}'),
    ('glca.bnneck.{p}', 'head.necks.glca.bn.{p}'),
    ('head.{p}', 'head.necks.sa.classifier.{p}'),
    ('bnneck.{p}', 'head.necks.sa.bn.{p}'),
    *with_prefix(BACKBONE_PAIRS, own='backbone.'),
]


def build_model(config: dict, w: Tensor) -> torch.nn.ModuleDict:
    """Backbone and head for a file's settings."""
    glca, head, losses = config['glca'], config['head'], config['losses']
    loss_metric = None
    if 'triplet' in losses:
        loss_metric = dict(
            type='TripletLoss',
            margin=losses['triplet']['margin'],
            normalize=losses['triplet']['normalize_feature'],
        )
    backbone = config['backbone']
    module = torch.nn.ModuleDict(
        dict(
            backbone=VisionTransformer(**backbone_config(backbone)),
            head=DCALHead(
                num_classes=head['num_classes'],
                in_channels=backbone['embed_dims'],
                task=head['task'],
                num_heads=glca['num_heads'],
                feedforward_channels=int(backbone['embed_dims'] * glca['mlp_ratio']),
                glca=dict(
                    ratio=glca['ratio'],
                    input=glca['input'],
                    pool=glca['pool'],
                    num_blocks=glca['num_blocks'],
                    init='random',  # replaced by the file's weights
                    norm_cfg=dict(type='LN', eps=glca['norm_eps']),
                    layer_cfg=dict(qkv_bias=backbone['qkv_bias'], qk_scale=backbone['qk_scale']),
                ),
                pwca=dict(partner_stream=config['pwca']['partner_stream']),
                loss_metric=loss_metric,
                loss_weighting=dict(type='UncertaintyWeightedLoss', init=w.tolist()),
                infer_branch=config['infer_branch'],
            ),
        )
    )
    module['head'].attach(module['backbone'])
    for neck in module['head'].necks.values():
        if head['task'] == 'reid':
            neck.bn.eps = head['bn_eps']
    assert config['pwca']['num_blocks'] == module['backbone'].num_layers
    assert list(module['head'].loss_weighting.tasks) == config['loss_weighting']['order_of_w']
    return module


def last_pair_attention(
    backbone: VisionTransformer, image: Tensor, partner: Tensor, partner_stream: str
) -> Tensor:
    """Weights of the last layer's pair-wise attention, by running the streams one by one."""
    tokens, _ = backbone.embed_patches(image)
    pair = tokens
    for layer in backbone.layers:
        other = pair if partner_stream == 'pwca' else tokens
        pair, weights = pairwise_cross_attention(layer, pair, other[partner], need_weights=True)
        tokens, _ = layer(tokens)
    return weights


def check_model(golden: GoldenFile) -> None:
    config = golden.config
    model = build_model(config, golden.tensor('w'))
    names = load_renamed(model, golden.tensors('sd/'), MODEL_PAIRS)
    backbone, head = model['backbone'], model['head']
    reid = head.task == 'reid'
    model.train()
    image = golden.tensor('img').requires_grad_()
    partner = golden.tensor('partner')
    partner_stream = config['pwca']['partner_stream']
    feats = backbone.forward_tokens(
        image, need_attention='factors', partner=partner, partner_stream=partner_stream
    )
    golden.compare('tokens', feats.tokens)
    golden.compare('pwca_tokens', feats.pair_tokens)
    row = attention_rollout_cls(feats.attentions)
    golden.compare('rollout_cls_row', row)
    golden.compare('scores', row[:, 1:])
    idx = head.glca.select(feats)
    golden.compare('idx', idx)
    assert idx.shape[1] == config['glca']['num_local']
    glca_tokens = head.glca.tokens(feats, idx)
    golden.compare('glca_tokens', glca_tokens)
    for pool in ('cls', 'mean'):
        head.glca.pool = pool
        golden.compare(f'glca_feat_{pool}', head.glca(feats))
    head.glca.pool = config['glca']['pool']
    weights = last_pair_attention(backbone, image, partner, partner_stream)
    golden.compare('pwca_attn_last_rowcls', weights[:, :, 0])

    losses = head.loss(feats, golden.tensor('label'))
    golden.compare('total_loss', losses['loss'])
    for branch, (feature, neck) in head.branches(feats).items():
        if branch != 'glca':
            golden.compare(f'{branch}_feat', feature)
        golden.compare(f'{branch}_logits', neck.classifier(neck(feature)))
        total = losses[f'{branch}_id']
        if reid:
            golden.compare(f'{branch}_feat_bn', neck(feature))
            golden.compare(f'{branch}_id_loss', losses[f'{branch}_id'])
            golden.compare(f'{branch}_tri_loss', losses[f'{branch}_metric'])
            total = total + losses[f'{branch}_metric']
        golden.compare(f'{branch}_loss', total)
    losses['loss'].backward()
    golden.compare('grad_img', image.grad)
    golden.compare('grad_w', weight_gradients(head.loss_weighting))
    compare_parameter_gradients(golden, model, names)

    model.eval()
    with torch.no_grad():
        image = golden.tensor('img')
        out = head.predict(backbone.forward_tokens(image, **head.token_options()))
        if reid:
            golden.compare('test_feat', out)
            golden.compare('test_feat_l2', F.normalize(out))
            return
        golden.compare('test_score', out)
        golden.compare('test_pred', out.argmax(dim=1))
        head.glca.pool = 'mean'
        out = head.predict(backbone.forward_tokens(image, **head.token_options()))
        golden.compare('test_score_mean_pool', out)


KINDS: dict[str, Callable[[GoldenFile], None]] = {
    'dcal_rollout': check_rollout,
    'dcal_pwca_block': check_pwca_block,
    'dcal_glca_block': check_glca_block,
    'dcal_uncertainty': check_uncertainty,
    'dcal_model': check_model,
}
