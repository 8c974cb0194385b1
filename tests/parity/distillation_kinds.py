"""Checks of the reference files of NKD, USKD and the distillation baselines."""

import inspect
from collections.abc import Callable

import numpy as np
import torch
from mmpretrain.structures import DataSample
from torch import Tensor

from vitdown.converters import convert_state_dict
from vitdown.models.backbones import MobileNetV1
from vitdown.models.distillation import Recorder, Tap
from vitdown.models.losses import ViTKDLoss, dkd_loss, kd_loss, nkd_loss, uskd_loss
from vitdown.models.losses.distillation import nkd_parts, target_class
from vitdown.models.losses.uskd import (
    rank_score,
    soft_target,
    top_targets,
    uskd_parts,
    weak_target,
    zipf_labels,
    zipf_row,
)
from vitdown.registry import MODELS

from .golden import GoldenFile


def check_nkd_loss(golden: GoldenFile) -> None:
    for case, settings in golden.cases.items():
        logits_s = golden.tensor(f'{case}/in/logit_s').requires_grad_()
        logits_t = golden.tensor(f'{case}/in/logit_t')
        target = golden.tensor(f'{case}/in/gt_label')
        temperature, gamma = settings['temperature'], settings['gamma']
        loss = nkd_loss(logits_s, logits_t, target, temperature, gamma)
        loss.backward()
        golden.compare(f'{case}/out/loss', loss)
        golden.compare(f'{case}/out/grad_logit_s', logits_s.grad)
        golden.compare(f'{case}/mid/label', target_class(target)[:, None])
        target_part, nontarget_part = nkd_parts(logits_s, logits_t, target, temperature)
        golden.compare(f'{case}/out/loss_target', target_part)
        golden.compare(f'{case}/out/loss_nontarget_scaled', gamma * temperature**2 * nontarget_part)


def check_kd_dkd_loss(golden: GoldenFile) -> None:
    for case, settings in golden.cases.items():
        for name, setting in settings['settings'].items():
            logits_s = golden.tensor(f'{case}/in/logit_s').requires_grad_()
            logits_t = golden.tensor(f'{case}/in/logit_t')
            options = {k: v for k, v in setting.items() if k != 'loss'}
            if setting['loss'] == 'kd':
                loss = kd_loss(logits_s, logits_t, **options)
                weight = MODELS.build(dict(type='KDLoss', **options)).head_loss_weight
                golden.compare(f'{case}/{name}/ce_weight', weight)
            else:
                loss = dkd_loss(logits_s, logits_t, golden.tensor(f'{case}/in/gt_label'), **options)
            loss.backward()
            golden.compare(f'{case}/{name}/loss', loss)
            golden.compare(f'{case}/{name}/grad_logit_s', logits_s.grad)


def check_uskd_loss(golden: GoldenFile) -> None:
    config = golden.config
    for case, settings in golden.cases.items():
        logits = golden.tensor(f'{case}/in/logit_s').requires_grad_()
        middle = golden.tensor(f'{case}/in/fea_mid').requires_grad_()
        target = golden.tensor(f'{case}/in/gt_label')
        if settings['tie_nudge']:
            first = golden.tensor(f'{case}/mid/label')[:, :1]
            target = target.scatter_add(
                1, first, torch.full(first.shape, settings['tie_nudge'], dtype=target.dtype)
            )
        fc = torch.nn.Linear(settings['in_channels'], settings['num_classes'])
        fc.load_state_dict(golden.tensors(f'{case}/sd/fc.'))
        options = dict(
            rank_mode=config['rank_mode'], exclude_zero_targets=config['exclude_zero_targets']
        )
        weights = {name: settings[name] for name in ('alpha', 'beta', 'mu')}
        loss = uskd_loss(logits, fc(middle), target, **weights, **options)
        loss.backward()
        golden.compare(f'{case}/out/loss', loss)
        golden.compare(f'{case}/out/grad_logit_s', logits.grad)
        golden.compare(f'{case}/out/grad_fea_mid', middle.grad)
        for name, parameter in fc.named_parameters():
            golden.compare(f'{case}/out/grad_fc.{name}', parameter.grad)
        with torch.no_grad():
            compare_uskd_parts(golden, case, logits, fc(middle), target, settings['mu'], options)


def compare_uskd_parts(
    golden: GoldenFile,
    case: str,
    logits: Tensor,
    weak_logits: Tensor,
    target: Tensor,
    mu: float,
    options: dict,
) -> None:
    num_classes = logits.shape[1]
    parts = uskd_parts(logits, weak_logits, target, mu, **options)
    for name, part in zip(('target', 'nontarget', 'weak_with_mu'), parts, strict=True):
        golden.compare(f'{case}/out/loss_{name}', part)
    labels, values = top_targets(target)
    golden.compare(f'{case}/mid/label', labels)
    golden.compare(f'{case}/mid/value', values)
    golden.compare(f'{case}/mid/soft_target', soft_target(logits, labels, values))
    targets = torch.zeros_like(logits, dtype=torch.bool).scatter(1, labels, True)
    score = rank_score(logits, weak_logits, targets, options['rank_mode'])
    golden.compare(f'{case}/mid/rank_score', score)
    zipf = zipf_row(num_classes)
    order = score.argsort(dim=1, descending=True, stable=True)
    golden.compare(f'{case}/mid/order_desc', order)
    golden.compare(f'{case}/mid/rank_position', order.argsort(dim=1))
    nobody = torch.zeros_like(targets)
    by_class = zipf_labels(score, nobody, zipf) * zipf.sum()
    golden.compare(f'{case}/mid/zipf_per_class', by_class)
    rest = zipf_labels(score, targets, zipf)[~targets].view(len(logits), -1)
    golden.compare(f'{case}/mid/soft_nontarget', rest)
    golden.compare(f'{case}/mid/weak_target', weak_target(target, num_classes))


def check_vitkd_loss(golden: GoldenFile) -> None:
    for case, settings in golden.cases.items():
        loss_module = ViTKDLoss(
            settings['student_dims'],
            settings['teacher_dims'],
            settings['alpha'],
            settings['beta'],
            settings['lambda'],
        )
        loss_module.load_state_dict(golden.tensors(f'{case}/sd/'))
        inputs = golden.tensors(f'{case}/in/')
        student = {name: inputs[name].requires_grad_() for name in ('low_s', 'high_s')}
        args = (*student.values(), inputs['low_t'], inputs['high_t'], inputs['noise'])
        loss = loss_module(*args)
        loss.backward()
        golden.compare(f'{case}/out/loss', loss)
        mimic, generation = loss_module.parts(*args)
        golden.compare(f'{case}/out/loss_mimic', mimic)
        golden.compare(f'{case}/out/loss_generation', generation)
        for name, value in student.items():
            golden.compare(f'{case}/out/grad_{name}', value.grad)
        for name in ('mask_token', 'generation.0.weight'):
            golden.compare(f'{case}/out/grad_{name}', loss_module.get_parameter(name).grad)
        mask, rank = loss_module.random_mask(inputs['noise'])
        golden.compare(f'{case}/mid/mask', mask)
        golden.compare(f'{case}/mid/ids_restore', rank)


def network(config: dict) -> dict:
    """Config of a classifier for a reference file's ``student`` or ``teacher`` entry."""
    backbone, head = config['backbone'], config['head']
    if backbone['type'] == 'ResNet_CIFAR':
        stages = backbone['out_indices']
        built = dict(
            type='mmpretrain.ResNet_CIFAR',
            depth=backbone['depth'],
            stem_channels=backbone['stem_channels'],
            base_channels=backbone['base_channels'],
            strides=tuple(backbone['strides']),
            out_indices=tuple(stages),
        )
    else:
        built = dict(
            type=f'vitdown.{backbone["type"]}',
            arch=backbone['arch'],
            img_size=tuple(backbone['img_size']),
            patch_size=backbone['patch_size'],
            qkv_bias=backbone['qkv_bias'],
            qk_scale=backbone['qk_scale'],
            norm_cfg=dict(type='LN', eps=backbone['norm_eps']),
            drop_path_rate=backbone['drop_path_rate'],
        )
    loss = head.get('loss', dict(type='CrossEntropyLoss'))
    smoothing = loss.get('label_smoothing', 0.0)
    head_loss = dict(type='mmpretrain.CrossEntropyLoss')
    if loss['type'] == 'LabelSmoothLoss':
        head_loss = dict(
            type='mmpretrain.LabelSmoothLoss', label_smooth_val=smoothing, mode='original'
        )
    return dict(
        type='mmpretrain.ImageClassifier',
        data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor'),
        backbone=built,
        neck=dict(type=f'mmpretrain.{config["neck"]["type"]}') if config['neck'] else None,
        head=dict(
            type=f'mmpretrain.{head["type"]}',
            num_classes=head['num_classes'],
            in_channels=head['in_channels'],
            loss=head_loss,
        ),
    )


def distilled(golden: GoldenFile, settings: dict) -> torch.nn.Module:
    """The student with its losses, weights loaded, in the modes that the case asks for."""
    config = golden.config
    weights = golden.tensors('sd/')
    teacher = None
    if config['teacher']:
        teacher = MODELS.build(network(config['teacher']))
        teacher.load_state_dict(golden.tensors('sd/teacher.'), strict=False)
    losses = {}
    for name, loss in config['distill_losses'].items():
        cls = MODELS.get(loss['type'])
        known = {'type', *inspect.signature(cls).parameters}
        losses[name] = {k: v for k, v in loss.items() if k in known}
    model = MODELS.build(
        dict(
            type='DistilledClassifier',
            student=network(config['student']),
            teacher=teacher,
            teacher_eval=settings.get('teacher_mode', 'eval') == 'eval',
            distill_losses=losses,
        )
    )
    own = {
        **convert_state_dict(weights, 'cls_kd'),
        **{k: v for k, v in weights.items() if k.startswith('distill_losses.')},
    }
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected
    assert all(key.endswith('num_batches_tracked') for key in missing)
    model.train(settings['student_mode'] == 'train')
    return model


def run_step(golden: GoldenFile, model: torch.nn.Module, settings: dict) -> dict[str, Tensor]:
    target = golden.tensor(settings['target'])
    set_target = DataSample.set_gt_score if target.ndim == 2 else DataSample.set_gt_label
    samples = [set_target(DataSample(), row) for row in target]
    return model(golden.tensor('in/inputs'), samples, mode='loss')


def check_distiller(golden: GoldenFile) -> None:
    for case, settings in golden.cases.items():
        model = distilled(golden, settings)
        losses = run_step(golden, model, settings)
        total, _ = model.parse_losses(losses)
        total.backward()
        golden.compare(f'{case}/out/ori_loss', losses['loss'])
        golden.compare(f'{case}/out/total', total)
        for name in golden.config['distill_losses']:
            golden.compare(f'{case}/out/{name}', losses[name])
        for key in golden.tensors(f'{case}/grad/'):
            golden.compare(f'{case}/grad/{key}', model.get_parameter(key).grad)
        if settings.get('teacher_mode') == 'train':
            moved = model.teacher.backbone.bn1.running_mean
            golden.compare(f'{case}/teacher.backbone.bn1.running_mean_after', moved)
        if settings['trajectory']:
            compare_trajectory(golden, case, settings)
    compare_evaluation(golden, next(iter(golden.cases.values())))


def compare_trajectory(golden: GoldenFile, case: str, settings: dict) -> None:
    options = dict(settings['trajectory'])
    optimizer_type, steps = options.pop('optimizer'), options.pop('num_steps')
    model = distilled(golden, settings)
    optimizer = getattr(torch.optim, optimizer_type)(model.parameters(), **options)
    totals = []
    for _ in range(steps):
        total, _ = model.parse_losses(run_step(golden, model, settings))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.detach())
    golden.compare(f'{case}/traj/loss', torch.stack(totals))
    golden.compare(
        f'{case}/traj/student_param_abs_sum',
        sum(p.detach().abs().sum() for p in model.student.parameters()),
    )


def compare_evaluation(golden: GoldenFile, settings: dict) -> None:
    """What the networks compute in evaluation mode, at the taps."""
    taps = golden.config['taps']
    model = distilled(golden, settings).eval()
    wanted = {}
    for key, name in (
        ('logits', 'student_logits'), ('student_logits', 'student_logits'),
        ('feat_mid_pooled', 'student_mid'), ('mid_cls_token', 'student_mid'),
        ('low_tokens', 'student_low'), ('high_tokens', 'student_high'),
    ):  # fmt: skip
        if f'eval/{key}' in golden:
            wanted[key] = Tap.parse('auto', name, model.student)
    if 'student_mid' in taps:
        (middle,) = (tap for key, tap in wanted.items() if 'mid' in key)
        assert middle.paths[0].removesuffix('.ffn') == taps['student_mid']['module']
    with torch.no_grad(), Recorder(model.student, wanted) as recorder:
        model(golden.tensor('in/inputs'))
        for key in wanted:
            golden.compare(f'eval/{key}', recorder[key])
        if model.teacher is not None:
            logits = model.teacher.eval()(golden.tensor('in/inputs'))
            golden.compare('eval/teacher_logits', logits)


def check_mobilenet_v1(golden: GoldenFile) -> None:
    config = golden.config
    formulas = {
        'conv': lambda a: a * np.sqrt(2 / np.prod(a.shape[1:])),
        'bn_weight': lambda a: 1 + 0.1 * a,
        'bn_bias': lambda a: 0.1 * a,
        'bn_running_mean': lambda a: 0.1 * a,
        'bn_running_var': lambda a: 1 + 0.2 * np.abs(a),
    }
    assert set(config['weights']['formulas']) == set(formulas)
    rs = np.random.RandomState(config['weights']['seed'])
    weights = {}
    for key, shape, formula in config['weights']['draws']:
        drawn = rs.standard_normal(tuple(shape)).astype(np.float32)
        weights[key] = torch.from_numpy(formulas[formula](drawn).astype(np.float32))
    model = MobileNetV1(config['in_channels']).eval()
    own = [key for key in model.state_dict() if not key.endswith('num_batches_tracked')]
    assert own == list(weights)
    model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        outs = model(golden.tensor('in/inputs'))
    for name, out in zip(('mid', 'last'), outs, strict=True):
        golden.compare(f'eval/feat_{name}', out.mean(dim=(2, 3)))
        golden.compare(f'eval/feat_{name}_shape', torch.tensor(out.shape))
    golden.compare('sd_keys_hash_param_count', sum(p.numel() for p in model.parameters()))


KINDS: dict[str, Callable[[GoldenFile], None]] = {
    'nkd_loss': check_nkd_loss,
    'uskd_loss': check_uskd_loss,
    'kd_dkd_loss': check_kd_dkd_loss,
    'vitkd_loss': check_vitkd_loss,
    'distiller_nkd_resnet': check_distiller,
    'distiller_uskd_resnet': check_distiller,
    'distiller_nkd_vit': check_distiller,
    'distiller_uskd_vit': check_distiller,
    'mobilenet_v1_recipe': check_mobilenet_v1,
}
