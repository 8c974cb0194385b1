"""Checks of the reference files of OFQ that concern functions."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from vitdown.models.losses.distillation import kd_loss
from vitdown.models.quantization.annealing import mask_gradients, restore_frozen
from vitdown.models.quantization.functional import (
    cga_free_mask,
    lsq,
    lsq_initial_step,
    statsq,
    statsq_codes,
    statsq_position,
    statsq_scale,
)
from vitdown.models.quantization.oscillation import OscillationTracker
from vitdown.models.quantization.quantizers import LSQQuantizer

from .golden import GoldenFile


def check_statsq(golden: GoldenFile) -> None:
    assert golden.config['clip_low'] == -1
    weight = golden.tensor('W')
    # One scale for each entry of the middle axis: rows of a matrix
    stacked = golden.tensor('W3')
    rows = stacked.transpose(0, 1).flatten(1)
    for case, settings in golden.cases.items():
        bits = settings['bits']
        codes, scale = statsq_codes(weight, bits)
        golden.compare(f'{case}/scale', scale.flatten())
        golden.compare(f'{case}/pre_round', statsq_position(weight, bits))
        golden.compare(f'{case}/level', codes)
        for prefix in ('', 'cga_train_'):
            latent = weight.clone().requires_grad_()
            quantized = statsq(latent, bits)
            golden.compare(f'{case}/{prefix}W_q', quantized)
            (quantized * golden.tensor('grad_out')).sum().backward()
            golden.compare(f'{case}/{prefix}grad_W', latent.grad)

        golden.compare(f'{case}/scale3', statsq_scale(rows).flatten())
        latent = rows.clone().requires_grad_()
        quantized = statsq(latent, bits).unflatten(1, (len(stacked), -1)).transpose(0, 1)
        golden.compare(f'{case}/W3_q', quantized)
        (quantized * golden.tensor('grad_out3')).sum().backward()
        grad = latent.grad.unflatten(1, (len(stacked), -1)).transpose(0, 1)
        golden.compare(f'{case}/grad_W3', grad)


def check_lsq(golden: GoldenFile) -> None:
    for case, settings in golden.cases.items():
        x = golden.tensor(settings['input']).requires_grad_()
        qn, qp, axis = settings['qn'], settings['qp'], settings['axis']
        view = [1] * x.ndim
        if axis is not None:
            view[axis] = -1
        view = tuple(view) if axis is not None else (-1,)
        signed = None if settings.get('sign') == 'auto' else settings['signed']
        number = 1 if axis is None else x.shape[axis]
        quantizer = LSQQuantizer(
            settings['bits'], view, number, signed, init_factor=settings['init_factor']
        )
        quantizer(x)
        assert quantizer.bounds == (qn, qp)
        if 'signed' in settings['checks']:
            golden.compare(f'{case}/signed', quantizer.signed.reshape(1))
        if 's_init' in settings['checks']:
            golden.compare(f'{case}/s_init', quantizer.step)
            shape = quantizer.broadcast_step().shape
            step = lsq_initial_step(x, shape, qp, settings['init_factor'])
            golden.compare(f'{case}/s_init', step.flatten())
        step = golden.tensor(f'{case}/s').requires_grad_()
        out = lsq(x, step.view(view), qn, qp)
        golden.compare(f'{case}/out', out)
        (out * golden.tensor(f'{case}/grad_out')).sum().backward()
        golden.compare(f'{case}/grad_x', x.grad)
        golden.compare(f'{case}/grad_s', step.grad)


def check_cga(golden: GoldenFile) -> None:
    config = golden.config
    trajectory = config['trajectory']
    options = dict(trajectory['optimizer'])
    assert options.pop('type') == 'AdamW'
    for case, settings in golden.cases.items():
        bits = settings['bits']
        start = golden.tensor(f'{case}/W')
        for boundary_range, entry in config['freeze_entries'].items():
            frozen = ~cga_free_mask(start, bits, float(boundary_range))
            golden.compare(f'{case}/{entry}', frozen.int())

        weight = torch.nn.Parameter(start.clone())
        optimizer = torch.optim.AdamW([weight], **options)
        losses, weights, frozen = [], [], []
        for step in range(trajectory['num_steps']):
            optimizer.zero_grad()
            out = golden.tensor(f'{case}/X') @ statsq(weight, bits).T
            loss = F.mse_loss(out, golden.tensor(f'{case}/Y'))
            loss.backward()
            before = weight.detach().clone()
            if step in trajectory['cga_steps']:
                free = cga_free_mask(weight, bits, trajectory['boundary_range'])
                mask_gradients([weight], [free])
                optimizer.step()
                restore_frozen([weight], [free], [before])
                frozen.append(~free)
                assert torch.equal(weight[~free], before[~free])
            else:
                optimizer.step()
            losses.append(loss.detach())
            weights.append(weight.detach().clone())
        golden.compare(f'{case}/traj_loss', torch.stack(losses))
        golden.compare(f'{case}/traj_W', torch.stack(weights))
        golden.compare(f'{case}/traj_freeze', torch.stack(frozen).int())


def check_oscillation(golden: GoldenFile) -> None:
    codes = golden.tensor('x_int')
    for case, settings in golden.cases.items():
        tracker = OscillationTracker(
            momentum=settings['momentum'], freeze_threshold=settings['freeze_threshold']
        )
        observed, ema, total = [], [], []
        for row in codes:
            observed.append(tracker.update(row))
            ema.append(tracker.frequency.clone())
            total.append(tracker.total.clone())
        if settings['freeze_threshold']:
            golden.compare(f'{case}/out', torch.stack(observed))
            golden.compare(f'{case}/frozen', tracker.frozen.int())
            golden.compare(f'{case}/frozen_x_int', tracker.frozen_codes)
            golden.compare(f'{case}/ema', tracker.frequency)
        else:
            golden.compare(f'{case}/ema', torch.stack(ema))
            golden.compare(f'{case}/total', torch.stack(total))
            golden.compare(f'{case}/prev_dir', tracker.direction)


def check_kd_loss(golden: GoldenFile) -> None:
    config = golden.config
    temperature = config['temperature']

    def total(hard, soft, target):
        distilled = kd_loss(soft, teacher, temperature, alpha=config['soft_weight'])
        return config['hard_weight'] * F.cross_entropy(hard, target) + distilled

    teacher = golden.tensor('teacher_cls')
    cls, dist = (golden.tensor(name).requires_grad_() for name in ('cls', 'dist'))
    loss = total(cls, dist, golden.tensor('target'))
    golden.compare('loss_two_heads', loss)
    loss.backward()
    golden.compare('grad_cls', cls.grad)
    golden.compare('grad_dist', dist.grad)

    cls = golden.tensor('cls').requires_grad_()
    loss = total(cls, cls, golden.tensor('soft_target'))
    golden.compare('loss_one_head_softlabel', loss)
    loss.backward()
    golden.compare('grad_one_head', cls.grad)
    golden.compare('soft_only', kd_loss(cls, teacher, temperature, alpha=1.0))


KINDS: dict[str, Callable[[GoldenFile], None]] = {
    'ofq_statsq': check_statsq,
    'ofq_lsq': check_lsq,
    'ofq_cga': check_cga,
    'ofq_oscillation': check_oscillation,
    'ofq_kd_loss': check_kd_loss,
}
