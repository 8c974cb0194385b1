"""Checks of the reference files of STViT that concern whole models."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdown.converters import convert_state_dict, export_state_dict
from vitdown.converters.renaming import rename
from vitdown.converters.stvit import SEMANTIC_BLOCK, merge_projections, split_projections
from vitdown.converters.timm import with_prefix
from vitdown.models.backbones import STViTDeiT, STViTSwin
from vitdown.models.layers.semantic_pooling import split_regions

from .golden import GoldenFile
from .stvit_kinds_layers import layer_options, load_but_indices, released_reach, weighted_loss


def build_backbone(config: dict, **kwargs) -> STViTSwin:
    stem = dict(type='BN', eps=config['bn_eps'], momentum=config.get('bn_momentum', 0.1))
    return STViTSwin(
        arch={key: config[key] for key in ('embed_dims', 'depths', 'num_heads')},
        in_channels=config['in_channels'],
        window_size=config['window_size'],
        num_semantic=config['num_semantic'],
        key_mode=config['key_mode'],
        semantic_shortcut=config['shortcut'],
        use_global_center=config['use_global'],
        relative_pos=config['relative_pos'],
        conv_pos=config['use_conv_pos'],
        drop_path_rate=config['drop_path_rate'],
        stem_norm_cfg=stem,
        norm_cfg=dict(type='LN', eps=config['norm_eps']),
        **kwargs,
    )


class Classifier(nn.Module):
    """Backbone, mean and linear classifier of a reference file, with its weights."""

    def __init__(self, golden: GoldenFile) -> None:
        super().__init__()
        config = golden.config
        map_size = config['img_size'] // config['patch_size'] // 4
        released_reach({**config, 'input_size': [map_size, map_size]})
        assert config['patch_size'] == 4
        self.backbone = build_backbone(config, img_size=config['img_size'])
        self.head = nn.Module()
        self.head.fc = nn.Linear(self.backbone.num_features[-1], config['num_classes'])
        load_but_indices(self, convert_state_dict(golden.tensors('sd/'), 'stvit'))

    def forward(self, x: Tensor) -> Tensor:
        (out,) = self.backbone(x)
        return self.head.fc(out.mean(dim=(2, 3)))


@torch.no_grad()
def check_cls_model_eval(golden: GoldenFile) -> None:
    model = Classifier(golden).eval()
    backbone = model.backbone
    image = golden.tensor('x')
    golden.compare('eval_logits', model(image))
    x, size = backbone.patch_embed(image)
    taps = {'patch_embed': x}
    for i, stage in enumerate(backbone.stages):
        x, size = stage(x, size)
        taps[f'layers.{i}'] = x
    for key, feature in golden.config['features'].items():
        out, axis = taps[feature['official_module']], feature['mean_axis']
        golden.compare(key, out if axis is None else out.mean(dim=axis))


def check_cls_model_train(golden: GoldenFile) -> None:
    model = Classifier(golden).eval()
    image = golden.tensor('x')
    golden.compare('eval_logits', model(image))
    logits = model.train()(image)
    golden.compare('train_logits', logits)
    loss = F.cross_entropy(logits, golden.tensor('label').long())
    golden.compare('train_ce_loss', loss)
    loss.backward()
    gradients = export_state_dict({k: p.grad for k, p in model.named_parameters()}, 'stvit')
    for name in golden.tensors('grad/'):
        golden.compare(f'grad/{name}', gradients[name])
    statistic = golden.config['bn_statistic']
    buffers = export_state_dict(model.state_dict(), 'stvit')
    golden.compare(statistic['entry'], buffers[statistic['buffer']])


def lay_out_as_released(_module: nn.Module, _args: tuple, out: Tensor) -> None:
    """Give the gradient of a single image the strides it has in the released code.

    The stored gradients passed with them through PyTorch's batch norm in eval mode, which then
    returns a wrong result. Our stem does not lead to such strides.
    """
    if out.requires_grad and len(out) == 1:
        out.register_hook(
            lambda grad: (
                grad.permute(0, 2, 3, 1).contiguous().flatten(1, 2).transpose(1, 2).view(grad.shape)
            )
        )


def check_det_backbone(golden: GoldenFile) -> None:
    config = golden.config
    model = build_backbone(
        config,
        key_windows=config['key_windows'],
        recover_key_window=config['recover_key_window'],
        pad_mask=config['pad_mask'],
        out_indices=config['out_indices'],
    ).eval()
    model.patch_embed.projection[-1].bn.register_forward_hook(lay_out_as_released)
    weights = {f'backbone.{key}': value for key, value in golden.tensors('sd/').items()}
    own = convert_state_dict(weights, 'stvit')
    load_but_indices(model, {key.removeprefix('backbone.'): v for key, v in own.items()})
    for case, settings in golden.cases.items():
        x = golden.tensor(f'{case}/x').requires_grad_()
        assert list(x.shape[2:]) == settings['input_size']
        outs = model(x)
        weights = []
        for i, out in zip(config['out_indices'], outs):
            golden.compare(f'{case}/out{i}', out)
            weights.append(golden.tensor(f'{case}/loss_w{i}'))
        loss = weighted_loss(outs, weights)
        golden.compare(f'{case}/loss', loss)
        model.zero_grad()
        loss.backward()
        golden.compare(f'{case}/grad_x_abs_sum', x.grad.abs().sum())
        gradients = export_state_dict(
            {f'backbone.{k}': p.grad for k, p in model.named_parameters()}, 'stvit'
        )
        for entry, name in config['grad_names'].items():
            golden.compare(f'{case}/{entry}', gradients[f'backbone.{name}'])


DEIT_PAIRS = [
    ('global_center', 'global_center'),
    ('pool.gen_mask.0.{p}', 'pool.conv.{p}'),
    ('pool.gen_mask.1.norm.{p}', 'pool.norm.{p}'),
    ('pool.gen_mask.3.{p}', 'pool.score.{p}'),
    *with_prefix(SEMANTIC_BLOCK, 'blocks.{i}.', 'layers.{i}.'),
]


def check_deit_assembled(golden: GoldenFile) -> None:
    config = golden.config
    options = layer_options(config)
    arch = {k: options[k] for k in ('embed_dims', 'num_heads', 'feedforward_channels')}
    assert config['depth'] == sum(
        config[f'num_{part}'] for part in ('base', 'generation', 'semantic_layers')
    )
    model = STViTDeiT(
        {**arch, 'num_layers': config['depth']},
        num_base=config['num_base'],
        num_generation=config['num_generation'],
        semantic_grid=config['semantic_grid'],
        pool=config['pool']['type'],
        use_global_center=config['use_global'],
        **{k: options[k] for k in ('qkv_bias', 'norm_cfg', 'layer_scale_init_value')},
    ).eval()
    model.pool.pad_logit = config['pool']['pad_logit']
    weights = golden.tensors('sd/')
    shapes = {'pool.gen_mask.3.weight': weights['pool.gen_mask.3.weight'].flatten(1)}
    own = rename(merge_projections({**weights, **shapes}), DEIT_PAIRS, 'STViT-DeiT')
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected
    assert all(key.startswith(('ln2.', 'patch_embed.', 'pos_embed')) for key in missing)

    x = golden.tensor('x').requires_grad_()
    pooled = []
    model.pool.register_forward_hook(lambda _, args, out: pooled.append((args, out)))
    tokens = list(model.run_layers(x, tuple(config['input_size'])))
    ((args, start),) = pooled
    golden.compare('P', start)
    regions = split_regions(*args, config['semantic_grid'])
    inside = split_regions(torch.ones_like(args[0][..., :1]).bool(), args[1], model.pool.grid)
    golden.compare('pool_mask', model.pool.weights(regions, inside.flatten(2)))
    base = config['num_base']
    golden.compare('x_base', tokens[base - 1])
    golden.compare('S1', tokens[base])
    golden.compare('S2', tokens[base + 1])
    golden.compare('out', tokens[-1])
    golden.compare('gap', tokens[-1].mean(dim=1))
    loss = weighted_loss([tokens[-1]], [golden.tensor('loss_w')])
    golden.compare('loss', loss)
    loss.backward()
    golden.compare('grad_x', x.grad)
    own_gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    gradients = split_projections(rename(own_gradients, DEIT_PAIRS, 'STViT-DeiT', reverse=True))
    for name in golden.tensors('grad/'):
        expected = golden[f'grad/{name}']
        golden.compare(f'grad/{name}', gradients[name].reshape(expected.shape))


KINDS: dict[str, Callable[[GoldenFile], None]] = {
    'stvit_cls_model_eval': check_cls_model_eval,
    'stvit_cls_model_train': check_cls_model_train,
    'stvit_det_backbone': check_det_backbone,
    'stvit_deit_assembled': check_deit_assembled,
}
