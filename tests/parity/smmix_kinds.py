"""Checks of the reference files of SMMix."""

import random
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from vitdown.converters import convert_state_dict, export_state_dict
from vitdown.engine.hooks import SMMixHook
from vitdown.models.distillation import Tap
from vitdown.models.mixing import (
    AttentionProbe,
    Mix,
    PatchRecorder,
    draw_mix,
    flip_partner,
    masked_token_means,
    mix_images,
    paste_regions,
    pick_regions,
    region_mask,
    region_scores,
    region_sizes,
    smooth_onehot,
    token_geometry,
)
from vitdown.models.mixing.smmix import TokenGeometry
from vitdown.registry import MODELS

from .golden import GoldenFile


def images(codes: Tensor) -> Tensor:
    return (codes.float() - 128) / 64


def codes(x: Tensor) -> Tensor:
    return (x * 64 + 128).round()


def check_region_mix(golden: GoldenFile) -> None:
    config = golden.config
    cell = tuple(config['cell_size'])
    for case, settings in golden.cases.items():
        grid, size = tuple(settings['grid']), tuple(settings['region_size'])
        x = images(golden.tensor(settings['x']))
        regions = pick_regions(golden.tensor(settings['attn']), grid, size)
        mixed = paste_regions(x, regions, flip_partner(len(x)), TokenGeometry(grid, cell, cell))
        golden.compare(f'{case}/mixed_u8', codes(mixed))
        golden.compare(f'{case}/source_mask', region_mask(regions.target, grid, size).int())
        sizes = region_sizes(grid, tuple(config['region_ratio']))
        key = settings['x'].replace('x_u8', 'sizes')
        golden.compare(key, [rows for rows, _ in sizes])


def check_mixup(golden: GoldenFile) -> None:
    config = golden.config
    x, labels = golden.tensor('x'), golden.tensor('y')
    partner = flip_partner(len(x))
    for case, settings in golden.cases.items():
        target = smooth_onehot(labels, config['num_classes'], settings['label_smoothing'])
        if settings['case_kind'] == 'label_mix':
            lam = settings['lam']
            golden.compare(case, lam * target + (1 - lam) * target[partner])
            continue
        rng = np.random.RandomState(settings['np_seed'])
        mix = draw_mix(
            lambda: (1, 1),
            rng.rand,
            random.choice,
            rng.beta,
            settings['switch_prob'],
            settings['mixup_alpha'],
        )
        assert mix.size is None
        golden.compare(f'{case}/lam', mix.lam)
        golden.compare(f'{case}/mixed', mix_images(x, partner, mix.lam))
        golden.compare(f'{case}/target', mix.lam * target + (1 - mix.lam) * target[partner])


def check_rng_schedule(golden: GoldenFile) -> None:
    config = golden.config
    numpy_rng = np.random.RandomState(config['np_seed'])
    python_rng = random.Random(config['py_seed'])
    grid = tuple(config['grid'])
    draws = [
        draw_mix(
            lambda: grid,
            numpy_rng.rand,
            python_rng.choice,
            numpy_rng.beta,
            config['switch_prob'],
            config['mixup_alpha'],
            tuple(config['region_ratio']),
        )
        for _ in range(config['num_calls'])
    ]
    golden.compare('kind', [int(mix.size is not None) for mix in draws])
    golden.compare('rect', [mix.size[0] if mix.size else 0 for mix in draws])
    golden.compare('lam', [mix.lam for mix in draws])


def classifier(config: dict) -> nn.Module:
    backbone, num_classes = config['backbone'], config['head']['num_classes']
    common = dict(
        img_size=tuple(backbone['img_size']),
        in_channels=backbone['in_channels'],
        qkv_bias=backbone['qkv_bias'],
        norm_cfg=dict(type='LN', eps=backbone['norm_eps']),
        drop_rate=backbone['drop_rate'],
        drop_path_rate=backbone['drop_path_rate'],
    )
    if backbone['type'] == 'VisionTransformer':
        dims = backbone['embed_dims']
        own = dict(
            arch=dict(
                embed_dims=dims,
                num_layers=backbone['depth'],
                num_heads=backbone['num_heads'],
                feedforward_channels=int(dims * backbone['mlp_ratio']),
            ),
            patch_size=backbone['patch_size'],
            qk_scale=backbone['qk_scale'],
            attn_drop_rate=backbone['attn_drop_rate'],
        )
        head = 'mmpretrain.VisionTransformerClsHead'
    else:
        dims = backbone['embed_dims'][-1]
        keys = ('embed_dims', 'depths', 'num_heads', 'mlp_ratios', 'sr_ratios')
        own = dict(arch={key: backbone[key] for key in keys}, patch_sizes=backbone['patch_sizes'])
        head = 'mmpretrain.LinearClsHead'
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor'),
            backbone=dict(type=f'vitdown.{backbone["type"]}', **common, **own),
            head=dict(
                type=head,
                num_classes=num_classes,
                in_channels=dims,
                loss=dict(type='mmpretrain.CrossEntropyLoss'),
            ),
        )
    )


def check_step(golden: GoldenFile) -> None:
    config = golden.config
    mixer = config['mixer']
    weights = golden.tensors('sd/')
    model = classifier(config)
    converted = convert_state_dict(weights, 'smmix')
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert not missing
    assert not unexpected
    back = export_state_dict(model.state_dict(), 'smmix')
    assert all(torch.equal(back[key], weights[key]) for key in back)
    factors = config['losses']['weights']
    hook = SMMixHook(
        label_smooth=mixer['label_smoothing'],
        fine_weight=factors['fine'],
        consistency_weight=factors['con'],
        seed=0,
    )
    hook.draw = partial(draw_region, golden)
    token_head = hook.prepare(model).fc
    token_head.load_state_dict(golden.tensors('sd/token_head.'))

    model.train()
    x, labels = images(golden.tensor('x_u8')), golden.tensor('y')
    probe = AttentionProbe(model)
    clean_logits, scores = probe(x)
    golden.compare('clean_logits', clean_logits)
    golden.compare('clean_attn', scores)
    geometry = token_geometry(model.backbone, x.shape[-2:], scores.shape[1])
    grid = geometry.grid
    assert list(grid) == mixer['grid']
    assert list(geometry.stride) == mixer['cell_size']
    mix = draw_region(golden, lambda: grid)
    lam, size = mix.lam, mix.size
    golden.compare('lam', lam)

    regions = pick_regions(scores, grid, size)
    golden.compare('region_scores', region_scores(scores, grid, size))
    golden.compare('min_start', regions.target)
    golden.compare('max_start', regions.source)
    partner = flip_partner(len(x))
    mixed = paste_regions(x, regions, partner, geometry)
    golden.compare('mixed_x_u8', codes(mixed))
    pasted = region_mask(regions.target, grid, size)
    golden.compare('source_mask', pasted.int())
    golden.compare('target_mask', (~pasted).int())

    target = smooth_onehot(labels, config['head']['num_classes'], mixer['label_smoothing'])
    golden.compare('target_target', target)
    golden.compare('source_target', target[partner])
    golden.compare('mixed_logits_teacher', lam * clean_logits + (1 - lam) * clean_logits[partner])

    taps = dict(logits=Tap.parse('auto', 'student_logits', model))
    with torch.no_grad(), PatchRecorder(probe, taps) as recorder:
        golden.compare('out_cls', model(mixed))
        means = masked_token_means(recorder.patches(len(x)), torch.stack((~pasted, pasted), dim=1))
        regional = token_head(means)
    golden.compare('out_target', regional[:, 0])
    golden.compare('out_source', regional[:, 1])

    # The whole step once more, as training runs it.
    seen = []
    model.backbone.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].requires_grad_()) if torch.is_grad_enabled() else None
    )
    hook.watch(model)
    samples = [DataSample().set_gt_label(label) for label in labels]
    losses = model(x, samples, mode='loss')
    assert torch.equal(seen[0], mixed)
    (mixed,) = seen
    golden.compare('mixed_target', torch.stack([sample.gt_score for sample in samples]))
    golden.compare('loss_cls', losses['loss'])
    for name in ('fine', 'con'):
        golden.compare(f'loss_{name}', losses[f'loss_{name}'] / factors[name])
    loss = factors['cls'] * losses['loss'] + losses['loss_fine'] + losses['loss_con']
    golden.compare('loss', loss)
    loss.backward()
    golden.compare('grad_mixed_x_s4', mixed.grad[:, :, ::4, ::4])
    golden.compare('grad_mixed_x_abs_sum', mixed.grad.abs().sum())
    name_of = {id(value): key for key, value in converted.items()}
    for key in golden.tensors('grad/'):
        if key.startswith('token_head.'):
            parameter = token_head.get_parameter(key.removeprefix('token_head.'))
        else:
            parameter = model.get_parameter(name_of[id(weights[key])])
        golden.compare(f'grad/{key}', parameter.grad)


def draw_region(golden: GoldenFile, get_grid: Callable[[], tuple[int, int]], *args) -> Mix:
    """The region's size as the file states it, drawn with its seeds where it was drawn."""
    mixer = golden.config['mixer']
    size = tuple(mixer['region_size'])
    if not mixer['region_size_drawn']:
        rows, columns = get_grid()
        return Mix(1 - size[0] * size[1] / (rows * columns), size)
    numpy_rng = np.random.RandomState(mixer['draw']['np_seed'])
    mix = draw_mix(
        get_grid,
        numpy_rng.rand,
        random.Random(mixer['draw']['py_seed']).choice,
        numpy_rng.beta,
        mixer['switch_prob'],
        mixer['mixup_alpha'],
        tuple(mixer['region_ratio']),
    )
    assert mix.size == size
    return mix


KINDS: dict[str, Callable[[GoldenFile], None]] = {
    'smmix_region_mix': check_region_mix,
    'smmix_mixup': check_mixup,
    'smmix_rng_schedule': check_rng_schedule,
    'smmix_step': check_step,
}
