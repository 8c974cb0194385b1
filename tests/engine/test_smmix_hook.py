import math
from uuid import uuid4

import pytest
import torch
from mmengine.logging import MMLogger
from mmpretrain.structures import DataSample
from torch import nn

from vitdown.checkpoint import load_checkpoint_file
from vitdown.engine.hooks import KDHook, NKDHook, SMMixHook, TokenConsistencyHook, USKDHook
from vitdown.models.mixing import smooth_onehot, soft_cross_entropy

from .classification import (
    NUM_CLASSES,
    Images,
    build,
    classifier,
    cnn,
    make_runner,
    reidentifier,
    train,
    vit_backbone,
    watch,
)


@pytest.fixture(autouse=True)
def open_logger_for_the_next_test():
    yield
    MMLogger.get_instance(f'after_{uuid4().hex}')


CAIT = dict(
    type='vitdown.CaiT',
    arch=dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=32),
    img_size=16,
    patch_size=4,
)
PVT = dict(
    type='vitdown.PyramidVisionTransformer',
    arch=dict(
        embed_dims=(8, 8, 16, 24),
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 3),
        mlp_ratios=(2, 2, 2, 2),
        sr_ratios=(4, 2, 2, 1),
    ),
    img_size=16,
    patch_sizes=(1, 2, 2, 1),
)
MODELS = {
    'deit': classifier(),
    'mmpretrain': classifier(vit_backbone(type='mmpretrain.VisionTransformer')),
    'overlapping': classifier(vit_backbone(stride=3)),
    'rectangular': classifier(vit_backbone(img_size=(24, 12))),
    'average': classifier(vit_backbone(with_cls_token=False, out_type='avg_featmap')),
    'mctf': classifier(vit_backbone(token_fusion=dict(type='MCTF', r=3))),
    'tome': classifier(vit_backbone(token_fusion=dict(type='ToMe', r=3))),
    'cait': classifier(CAIT),
    'pvt': classifier(PVT),
    'reid': reidentifier(),
}


@pytest.mark.parametrize('name', MODELS)
def test_two_iterations_and_a_checkpoint_of_the_model_alone(tmp_path, name):
    model = build(MODELS[name])
    plain = model.state_dict().keys()
    steps = watch(model)
    size = (24, 12) if name == 'rectangular' else (16, 16)
    train(model, tmp_path, [SMMixHook(switch_prob=1.0)], epochs=1, size=size)
    own = {'loss_id', 'accuracy'} if name == 'reid' else {'loss'}
    assert [set(step) for step in steps] == [own | {'loss_fine', 'loss_con'}] * 2
    assert all(step['loss_fine'] > 0 for step in steps)
    assert model.state_dict().keys() == plain
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    checkpoint = load_checkpoint_file(tmp_path / 'epoch_1.pth')
    assert checkpoint['state_dict'].keys() == plain
    again = build(MODELS[name], seed=5)
    again.load_state_dict(checkpoint['state_dict'])
    with torch.no_grad():
        image = torch.rand(2, 3, *size)
        torch.testing.assert_close(again.eval()(image), model.eval()(image))


def test_resumed_run_draws_the_same_and_goes_on_bit_by_bit(tmp_path):
    def run(folder, epochs, **kwargs):
        model = build(classifier())
        steps = watch(model)
        train(model, folder, [SMMixHook(pairing='random')], epochs=epochs, **kwargs)
        return steps, model

    whole, expected = run(tmp_path / 'whole', 6)
    assert {'loss_con' in step for step in whole} == {True, False}
    run(tmp_path / 'parts', 3)
    # Another seed would draw otherwise: the checkpoint's counts.
    rest, model = run(tmp_path / 'parts', 6, resume=True)
    assert rest == whole[6:]
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_seed_is_kept_in_the_checkpoint(tmp_path):
    train(build(classifier()), tmp_path, [SMMixHook(seed=11)], epochs=1)
    hook = SMMixHook(seed=12)
    train(build(classifier()), tmp_path, [hook], epochs=2, resume=True)
    assert hook.seed == 11


class Spy(SMMixHook):
    """Keeps the step and the gradients of the token head."""

    def before_train(self, runner):
        super().before_train(runner)
        self.kept = []
        self.images = []
        self.gradients = []
        model = runner.model
        model.backbone.register_forward_pre_hook(
            lambda _, args: self.images.append(args[0].clone()) if torch.is_grad_enabled() else None
        )

    def _finish(self, model, args, kwargs, losses):
        if kwargs['mode'] == 'loss':
            self.kept.append((self._step, kwargs['data_samples']))
        return super()._finish(model, args, kwargs, losses)

    def after_train_iter(self, runner, *args, **kwargs):
        weight = self._token_head.weight if self.share_token_head else self._token_head.fc.weight
        self.gradients.append(weight.grad)


def test_mixup_steps_mix_images_and_labels(tmp_path):
    spy = Spy(switch_prob=0.0, label_smooth=0.2)
    model = build(classifier())
    steps = watch(model)
    runner = train(model, tmp_path, [spy], epochs=1, optim_wrapper=dict(accumulative_counts=9))
    clean = torch.stack([runner.train_dataloader.dataset[i]['inputs'] for i in range(6)])
    step, samples = spy.kept[0]
    lam = step.mix.lam
    assert step.mix.size is None
    torch.testing.assert_close(spy.images[0], lam * clean + (1 - lam) * clean.flip(0))
    target = smooth_onehot(torch.arange(6), NUM_CLASSES, 0.2)
    scores = torch.stack([sample.gt_score for sample in samples])
    torch.testing.assert_close(scores, lam * target + (1 - lam) * target.flip(0))
    assert steps[0]['loss_fine'] == 0
    assert set(steps[0]) == {'loss', 'loss_fine'}
    assert all(grad is None or not grad.any() for grad in spy.gradients)
    with torch.no_grad():
        model.load_state_dict(build(classifier()).state_dict())
        expected = soft_cross_entropy(model(spy.images[0]), scores)
    assert steps[0]['loss'] == pytest.approx(expected.item(), rel=1e-5)


def test_region_steps_paste_and_teach_the_token_head(tmp_path):
    spy = Spy(switch_prob=1.0)
    model = build(classifier())
    runner = train(model, tmp_path, [spy], epochs=1, optim_wrapper=dict(accumulative_counts=9))
    clean = torch.stack([runner.train_dataloader.dataset[i]['inputs'] for i in range(6)])
    step, _ = spy.kept[0]
    pasted = step.masks[:, 1].unflatten(1, (4, 4))
    pixels = pasted.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand_as(clean)
    assert (pasted.sum(dim=(1, 2)) == step.mix.size[0] * step.mix.size[1]).all()
    assert torch.equal(spy.images[0][~pixels], clean[~pixels])
    partner = clean.flip(0).unfold(2, 4 * step.mix.size[0], 4).unfold(3, 4 * step.mix.size[1], 4)
    for i in range(6):
        block = spy.images[0][i][pixels[i]].view(3, 4 * step.mix.size[0], -1)
        windows = partner[i].permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert any(torch.equal(block, window) for window in windows)
    assert step.mix.lam + pasted[0].float().mean() == pytest.approx(1)
    assert spy.gradients[0].any()


def test_clean_pass_leaves_no_trace(tmp_path):
    """Modes of all modules, dropout's random numbers and batch statistics stay as they were."""
    model = build(classifier(vit_backbone(drop_path_rate=0.5)))
    model.backbone.layers[0].eval()
    hook = SMMixHook(switch_prob=1.0)
    runner = make_runner(model, tmp_path, [hook])
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    hook.before_run(runner)
    model.train()
    model.backbone.layers[0].eval()
    modes = {name: m.training for name, m in model.named_modules()}
    images = torch.rand(2, 3, 16, 16)
    state = torch.get_rng_state()
    logits, scores = hook._probe(images)
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not logits.is_inference()
    assert not logits.requires_grad
    assert scores.shape == (2, 16)
    assert (scores.sum(dim=1) < 1).all()


@pytest.mark.parametrize('amp', [True, False])
def test_weights_get_gradients_under_autocast(tmp_path, amp):
    """Casts of the clean pass are not reused: they have no gradient."""
    model = build(classifier())
    step = model.train_step

    def autocast_step(*args, **kwargs):
        with torch.autocast('cpu', torch.bfloat16):
            return step(*args, **kwargs)

    model.train_step = autocast_step
    seen = []

    class Look(SMMixHook):
        def after_train_iter(self, runner, *args, **kwargs):
            seen.append({name: p.grad for name, p in runner.model.named_parameters()})

    train(
        model,
        tmp_path,
        [Look(switch_prob=1.0, probe_amp=amp)],
        epochs=1,
        optim_wrapper=dict(accumulative_counts=9),
    )
    for name, grad in seen[0].items():
        assert grad is not None, name
        assert grad.isfinite().all()
        assert grad.any(), name


def test_stops_mixing(tmp_path):
    spy = Spy(switch_prob=1.0, stop_epoch=1)
    train(build(classifier()), tmp_path, [spy], epochs=2)
    lams = [step.mix.lam for step, _ in spy.kept]
    assert all(lam < 1 for lam in lams[:2])
    assert lams[2:] == [1.0, 1.0]
    scores = torch.stack([sample.gt_score for sample in spy.kept[-1][1]])
    torch.testing.assert_close(scores, smooth_onehot(torch.arange(6), NUM_CLASSES))


def test_shared_head_adds_no_parameters(tmp_path):
    model = build(classifier())
    hook = Spy(switch_prob=1.0, share_token_head=True)
    runner = train(model, tmp_path, [hook], epochs=1)
    count = sum(p.numel() for g in runner.optim_wrapper.param_groups for p in g['params'])
    assert count == sum(p.numel() for p in model.parameters()) + 1
    assert hook._token_head is model.head.fc


@pytest.mark.parametrize('metric_losses', ['skip', 'clean'])
def test_reidentifiers_have_all_their_losses_after_mixing(tmp_path, metric_losses):
    model = build(reidentifier())
    steps = watch(model)
    hook = SMMixHook(switch_prob=1.0, stop_epoch=1, metric_losses=metric_losses)
    train(model, tmp_path, [hook], epochs=2)
    mixed = {'loss_id', 'accuracy', 'loss_fine', 'loss_con'}
    mixed |= {'loss_metric'} if metric_losses == 'clean' else set()
    clean = {'loss_id', 'accuracy', 'loss_metric', 'loss_fine'}
    assert [set(step) for step in steps] == [mixed] * 2 + [clean] * 2
    assert all(step['loss_fine'] == 0 for step in steps[2:])


def one_step(
    model: nn.Module,
    labels: range | list = range(6),
    images: torch.Tensor | None = None,
    **options,
) -> tuple[dict[str, torch.Tensor], list[DataSample]]:
    """Losses and samples of one batch that is mixed."""
    hook = SMMixHook(seed=3, **options)
    torch.manual_seed(0)
    hook.prepare(model)
    hook.watch(model)
    samples = [DataSample().set_gt_label(i) for i in labels]
    if images is None:
        images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return model.train()(images, samples, mode='loss'), samples


def test_weights_reach_the_losses():
    losses, _ = one_step(build(classifier()), switch_prob=1.0)
    weighted, _ = one_step(
        build(classifier()), switch_prob=1.0, fine_weight=0.5, consistency_weight=3.0
    )
    for name, weight in dict(loss=1.0, loss_fine=0.5, loss_con=3.0).items():
        torch.testing.assert_close(weighted[name], weight * losses[name])


@pytest.mark.parametrize(
    ('options', 'share'),
    [
        (dict(switch_prob=1.0, region_ratio=(0.25, 0.25)), 15 / 16),
        (dict(switch_prob=1.0, region_ratio=(0.75, 0.75)), 7 / 16),
        (dict(switch_prob=0.0, mixup_alpha=1e6), 1 / 2),
    ],
)
def test_options_of_the_draw_count(options, share):
    """On 4x4 tokens: regions of one and of nine, and Mixup in equal parts."""
    _, samples = one_step(build(classifier()), label_smooth=0.0, **options)
    for label, sample in enumerate(samples):
        assert sample.gt_score[label].item() == pytest.approx(share, abs=5e-3)


@pytest.mark.parametrize(
    'head',
    [
        dict(type='mmpretrain.DeiTClsHead'),
        dict(type='vitdown.DistilledClsHead', loss_on='cls'),
        dict(type='vitdown.DistilledClsHead', loss_on='both'),
    ],
)
def test_two_classifiers_are_one_prediction(head):
    """Pasting changes nothing in images of one colour: neither does the prediction."""
    config = classifier(vit_backbone(type='vitdown.DistilledVisionTransformer'))
    model = build({**config, 'head': {**config['head'], **head}})
    for parameter in model.head.parameters():
        nn.init.normal_(parameter)
    losses, _ = one_step(model, switch_prob=1.0, images=torch.ones(6, 3, 16, 16))
    assert losses['loss_con'].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(('probe_amp', 'dtype'), [(True, torch.bfloat16), (False, torch.float32)])
def test_precision_of_the_clean_pass(probe_amp, dtype):
    model = build(classifier())
    seen = []
    model.head.fc.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.autocast('cpu', torch.bfloat16):
        one_step(model, switch_prob=1.0, probe_amp=probe_amp)
    assert seen[:2] == [dtype, torch.bfloat16]


@pytest.mark.parametrize('pairing', ['flip', 'random'])
def test_pairing(pairing):
    _, samples = one_step(
        build(classifier()), switch_prob=0.0, mixup_alpha=9.0, label_smooth=0.0, pairing=pairing
    )
    scores = torch.stack([sample.gt_score for sample in samples])
    partner = [set(row.nonzero().flatten().tolist()) for row in scores]
    assert (partner == [{i, 5 - i} for i in range(6)]) == (pairing == 'flip')
    torch.testing.assert_close(scores.sum(dim=0), torch.ones(6))


def test_attention_decides_on_the_regions():
    seen = {}
    for attention in ('patch_mean', 'cls'):
        model = build(classifier())
        torch.nn.init.normal_(model.backbone.cls_token, std=9.0)
        images = []
        model.backbone.register_forward_pre_hook(lambda _, args, kept=images: kept.append(args[0]))
        one_step(model, switch_prob=1.0, attention=attention)
        seen[attention] = images[1]
    assert not torch.equal(*seen.values())


METRIC_HEADS = {
    'BNNeck': {},
    'two losses': dict(loss_metric=[dict(type='TripletLoss'), dict(type='TripletLoss', margin=3)]),
    'JPM': dict(type='JPMHead', num_groups=2),
    'DCAL': dict(type='DCALHead', num_heads=3, pwca=None),
    'DCAL, plain sum': dict(type='DCALHead', num_heads=3, pwca=None, loss_weighting=None),
}


@pytest.mark.parametrize('name', METRIC_HEADS)
def test_metric_losses_of_clean_images(name):
    """What the model's own loss contains of them."""

    def make():
        model = build(reidentifier(**METRIC_HEADS[name]))
        weights = [p for key, p in model.named_parameters() if 'log_vars' in key]
        for weight in weights:
            nn.init.constant_(weight, 0.7)
        return model, weights

    labels = [0, 0, 1, 1, 2, 2]
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    samples = [DataSample().set_gt_label(i) for i in labels]
    plain, _ = make()
    expected, _ = plain.parse_losses(plain.train()(images, samples, mode='loss'))
    plain.head.loss_metric = nn.ModuleList()
    expected = expected - plain.parse_losses(plain(images, samples, mode='loss'))[0]
    assert expected > 0.1
    for switch_prob in (0.0, 1.0):
        model, weights = make()
        options = dict(switch_prob=switch_prob, metric_losses='clean')
        losses, _ = one_step(model, labels, **options)
        found = sum(value for key, value in losses.items() if key.startswith('loss_metric'))
        torch.testing.assert_close(found, expected)
        if weights:  # their own term is in the loss of the mixed images
            slopes = torch.autograd.grad(found, weights)
            torch.testing.assert_close(sum(slopes), -found)


def test_kd_takes_its_share_of_the_metric_losses(tmp_path):
    """The model's own ones, also where they come from clean images, in any order and form."""
    student, teacher = reidentifier(), build(reidentifier(), seed=2)
    dataset = Images()
    dataset.labels = [0, 0, 1, 1, 2, 2]
    make = {
        'smmix': lambda: SMMixHook(switch_prob=1.0, metric_losses='clean'),
        'kd': lambda: KDHook(teacher, alpha=0.9),
    }
    wrapper = dict(
        type='DistilledClassifier',
        student=student,
        teacher=teacher,
        distill_losses=dict(loss_kd=dict(type='KDLoss', alpha=0.9)),
    )
    cases = [(student, ['smmix']), (student, ['smmix', 'kd']), (student, ['kd', 'smmix'])]
    seen = []
    for i, (config, order) in enumerate([*cases, (wrapper, ['smmix'])]):
        model = build(config)
        steps = watch(model)
        hooks = [make[name]() for name in order]
        train(model, tmp_path / str(i), hooks, epochs=1, dataset=dataset)
        seen.append(steps[0])
    assert seen[0]['loss_metric'] > 0.1
    for steps in seen[1:]:
        assert steps['loss_metric'] == pytest.approx(0.1 * seen[0]['loss_metric'])
        assert steps['loss_fine'] == pytest.approx(seen[0]['loss_fine'])


def test_a_model_with_its_distillation_losses(tmp_path):
    """Teacher and student see the mixed images; the run resumes."""
    teacher = build(cnn(6), seed=2)
    inputs = []
    teacher.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    config = dict(
        type='DistilledClassifier',
        student=classifier(),
        teacher=teacher,
        distill_losses=dict(loss_nkd=dict(type='NKDLoss')),
    )

    def run(folder, epochs, **kwargs):
        model = build(config)
        images = []
        model.student.backbone.register_forward_pre_hook(
            lambda _, args: images.append(args[0].clone()) if torch.is_grad_enabled() else None
        )
        steps = watch(model)
        train(model, folder, [SMMixHook(switch_prob=1.0)], epochs=epochs, **kwargs)
        return steps, images, model

    whole, images, model = run(tmp_path / 'whole', 2)
    assert set(whole[0]) == {'loss', 'loss_nkd', 'loss_fine', 'loss_con'}
    for seen, mixed in zip(inputs, images, strict=True):
        assert torch.equal(seen, mixed)
    run(tmp_path / 'parts', 1)
    rest, _, _ = run(tmp_path / 'parts', 2, resume=True)
    assert rest == whole[2:]
    assert set(model.state_dict()) == set(build(classifier()).state_dict())


def test_order_of_hooks_does_not_change_the_losses(tmp_path):
    """KD weighs the model's own losses alone, wherever it stands among the hooks."""
    make = {
        'smmix': lambda: SMMixHook(switch_prob=1.0, share_token_head=True),
        'nkd': lambda: NKDHook(build(cnn(6), seed=2)),
        'kd': lambda: KDHook(build(cnn(6), seed=2), alpha=0.9),
    }
    seen = {}
    for order in (['smmix', 'nkd'], ['smmix', 'nkd', 'kd'], ['kd', 'nkd', 'smmix']):
        model = build(classifier())
        steps = watch(model)
        train(model, tmp_path / '-'.join(order), [make[name]() for name in order], epochs=1)
        seen[tuple(order)] = steps[0]
    without, last, first = seen.values()
    assert first == pytest.approx(last)
    assert first['loss'] == pytest.approx(0.1 * without['loss'])
    for name in ('loss_fine', 'loss_con', 'loss_nkd'):
        assert first[name] == pytest.approx(without[name])


def test_works_with_distillation(tmp_path):
    """The teacher sees the mixed images and the loss their scores; the clean pass is not seen."""
    teacher = build(cnn(6), seed=2)
    inputs = []
    teacher.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    for nkd_first in (True, False):
        model = build(classifier(vit_backbone(token_fusion=dict(type='MCTF', r=3))))
        steps = watch(model)
        spy = Spy(switch_prob=1.0)
        inputs.clear()
        hooks = [NKDHook(teacher), spy] if nkd_first else [spy, NKDHook(teacher)]
        train(model, tmp_path / str(nkd_first), hooks, epochs=1)
        assert set(steps[0]) == {'loss', 'loss_fine', 'loss_con', 'loss_nkd'}
        for seen, mixed in zip(inputs, spy.images, strict=True):
            assert torch.equal(seen, mixed)


TOGETHER = {
    'quantized': classifier(
        vit_backbone(quant_cfg=dict(type='OFQ', w_bits=4, a_bits=4, act_granularity='tensor'))
    ),
    'quantized and fused': classifier(
        vit_backbone(
            quant_cfg=dict(type='OFQ', w_bits=4, a_bits=4, act_granularity='tensor'),
            token_fusion=dict(type='MCTF', r=3),
        )
    ),
    'dcal': reidentifier(type='DCALHead', num_heads=3),
    'jpm': reidentifier(type='JPMHead', num_groups=2),
}


@pytest.mark.parametrize('name', TOGETHER)
@pytest.mark.parametrize('reverse', [False, True])
def test_all_hooks_together(tmp_path, name, reverse):
    # Which says how its images are normalised, as the student does
    teacher = reidentifier() if name in ('dcal', 'jpm') else cnn(6)
    hooks = [SMMixHook(switch_prob=1.0), NKDHook(build(teacher, seed=2)), USKDHook()]
    if 'fused' in name:
        hooks.append(TokenConsistencyHook(r_max=2))
    model = build(TOGETHER[name])
    plain = model.state_dict().keys()
    steps = watch(model)
    train(model, tmp_path, hooks[::-1] if reverse else hooks, epochs=1)
    added = {'loss_fine', 'loss_con', 'loss_nkd', 'loss_uskd'}
    assert added <= set(steps[0])
    assert ('loss_consistency' in steps[0]) == ('fused' in name)
    assert all(math.isfinite(value) for step in steps for value in step.values())
    assert model.state_dict().keys() == plain


@pytest.mark.parametrize('conf_thr', [0.0, 0.9])
def test_smoothed_scores_leave_the_gate_of_the_consistency_shut(tmp_path, conf_thr):
    model = build(classifier(vit_backbone(token_fusion=dict(type='MCTF', r=3))))
    steps = watch(model)
    hooks = [SMMixHook(label_smooth=0.1), TokenConsistencyHook(r_max=2, conf_thr=conf_thr)]
    train(model, tmp_path, hooks, epochs=2)
    assert any(step['loss_consistency'] > 0 for step in steps) == (conf_thr == 0)


def with_mixup() -> dict:
    config = classifier()
    config['data_preprocessor']['batch_augments'] = dict(
        augments=[dict(type='mmpretrain.CutMix', alpha=1.0)]
    )
    return config


def smoothed() -> dict:
    config = classifier()
    config['head']['loss'] = dict(type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1)
    return config


def with_head(**kwargs) -> dict:
    config = classifier()
    config['head'].update(kwargs)
    return config


REV = dict(
    type='mmpretrain.RevVisionTransformer',
    arch=dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=32),
    img_size=16,
    patch_size=4,
)
ARCFACE = dict(
    type='MetricLearningLoss',
    loss=dict(type='ArcFaceLoss', num_classes=NUM_CLASSES, embedding_size=24),
)
MISTAKES = {
    'two mixings': (with_mixup, {}, 'remove batch_augments'),
    'two smoothings': (smoothed, {}, 'smoothed twice'),
    'no attention': (lambda: cnn(6), {}, 'CIFARResNet has no layers'),
    'clean classes': (classifier, dict(metric_losses='clean'), 'for a ReIdentifier'),
    'clean without metric': (
        lambda: reidentifier(loss_metric=None),
        dict(metric_losses='clean'),
        'whose head has loss_metric',
    ),
    'class attention': (
        lambda: classifier(vit_backbone(with_cls_token=False, out_type='avg_featmap')),
        dict(attention='cls'),
        'needs a backbone with a class token',
    ),
    'small grid': (
        lambda: classifier(vit_backbone(patch_size=16)),
        dict(switch_prob=1.0),
        'A grid of 1x1 tokens has no region',
    ),
    'margin loss': (lambda: reidentifier(loss_id=ARCFACE), {}, 'no .*linear classifier'),
    'averaged after': (
        classifier,
        {},
        'EMAHook must come before SMMixHook',
    ),
    'two streams': (
        lambda: classifier(REV),
        {},
        'final norm of RevVisionTransformer is wider',
    ),
    'hidden layer': (
        lambda: with_head(type='mmpretrain.VisionTransformerClsHead', hidden_dim=NUM_CLASSES),
        {},
        'VisionTransformerClsHead of ImageClassifier does not predict what head.layers.pre_logits',
    ),
    'identity loss': (
        lambda: reidentifier(loss_id=None),
        {},
        'no head with a linear classifier',
    ),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_get_one_clear_message(tmp_path, name):
    make, options, message = MISTAKES[name]
    hooks = [SMMixHook(**options)]
    if name == 'averaged after':
        hooks.append(dict(type='EMAHook', priority='LOWEST'))
    with pytest.raises(ValueError, match=message):
        train(build(make()), tmp_path, hooks, epochs=1)


@pytest.mark.parametrize(
    'options',
    [
        dict(switch_prob=1.5),
        dict(mixup_alpha=0),
        dict(region_ratio=(0.8, 0.2)),
        dict(label_smooth=1.0),
        dict(pairing='roll'),
        dict(metric_losses='mixed'),
        dict(stop_epoch=-1),
        dict(stop_epoch=1.5),
        dict(region_ratio=0.5),
        dict(fine_weight=-1),
        dict(consistency_weight='x'),
        dict(seed='x'),
        dict(share_token_head='no'),
        dict(probe_amp='false'),
    ],
    ids=lambda options: '-'.join(map(str, next(iter(options.items())))),
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SMMixHook(**options)


def test_mixed_images_are_not_mixed_again(tmp_path):
    hook = SMMixHook()
    model = build(classifier())
    runner = make_runner(model, tmp_path, [hook])
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    hook.before_run(runner)
    hook.before_train(runner)
    sample = DataSample().set_gt_score(torch.full((NUM_CLASSES,), 1 / NUM_CLASSES))
    with pytest.raises(ValueError, match='come with gt_score'):
        model(torch.rand(1, 3, 16, 16), [sample], mode='loss')
    for sample in (DataSample(), DataSample().set_gt_label([0, 1])):
        with pytest.raises(ValueError, match='Every sample needs one gt_label'):
            model(torch.rand(1, 3, 16, 16), [sample], mode='loss')
