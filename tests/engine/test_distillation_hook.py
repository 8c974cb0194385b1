import copy
from uuid import uuid4

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch import nn

from vitdown.checkpoint import CheckpointError, load_checkpoint_file
from vitdown.converters import convert_state_dict
from vitdown.engine.hooks import (
    DistillationHook,
    DKDHook,
    KDHook,
    NKDHook,
    SMMixHook,
    StopDistillHook,
    USKDHook,
    ViTKDHook,
)
from vitdown.models.distillation import (
    Distiller,
    FrozenTeacher,
    Recorder,
    Tap,
    build_losses,
    build_teacher,
)
from vitdown.models.distillation.teacher import input_conversion
from vitdown.models.losses import KDLoss
from vitdown.models.losses.distillation import nkd_parts
from vitdown.models.pretrained import load_pretrained
from vitdown.registry import MODELS

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


@pytest.fixture(scope='module')
def teacher_file(tmp_path_factory):
    """Weights of a CNN with six classes."""
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    torch.save(dict(state_dict=build(cnn(6), seed=1).state_dict()), path)
    return str(path)


def nkd(teacher_file: str, **kwargs) -> dict:
    return dict(type='NKDHook', teacher=cnn(6), teacher_checkpoint=teacher_file, **kwargs)


HOOKS = {
    'nkd': lambda f: nkd(f),
    'kd': lambda f: {**nkd(f), 'type': 'KDHook'},
    'dkd': lambda f: {**nkd(f), 'type': 'DKDHook'},
    'uskd': lambda f: dict(type='USKDHook'),
    'vitkd': lambda f: dict(
        type='ViTKDHook',
        teacher=build(classifier(vit_backbone() | {'arch': WIDE}, 32)),
        teacher_dims=32,
    ),
}
WIDE = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=32)


@pytest.mark.parametrize('name', HOOKS)
def test_two_iterations_and_a_checkpoint_of_the_student_alone(tmp_path, teacher_file, name):
    model = build(classifier())
    plain = model.state_dict().keys()
    before = len(model._forward_hooks), len(model._forward_pre_hooks)
    steps = watch(model)
    runner = train(model, tmp_path, [HOOKS[name](teacher_file)], epochs=1)
    assert [set(step) for step in steps] == [{'loss', f'loss_{name}'}] * 2
    assert all(value > 0 for step in steps for value in step.values())
    assert (len(model._forward_hooks), len(model._forward_pre_hooks)) == before
    assert not any(m._forward_hooks for n, m in model.named_modules() if n)
    assert runner.model.state_dict().keys() == plain
    checkpoint = load_checkpoint_file(tmp_path / 'epoch_1.pth')
    assert checkpoint['state_dict'].keys() == plain
    again = build(classifier(), seed=5)
    again.load_state_dict(checkpoint['state_dict'])
    with torch.no_grad():
        image = torch.rand(2, 3, 16, 16)
        torch.testing.assert_close(again.eval()(image), model.eval()(image))


@pytest.mark.parametrize('name', HOOKS)
def test_resumed_run_goes_on_bit_by_bit(tmp_path, teacher_file, name):
    def run(folder, epochs, **kwargs):
        model = build(classifier())
        steps = watch(model)
        train(model, folder, [HOOKS[name](teacher_file)], epochs=epochs, **kwargs)
        return steps, model

    whole, expected = run(tmp_path / 'whole', 3)
    run(tmp_path / 'parts', 2)
    rest, model = run(tmp_path / 'parts', 3, resume=True)
    assert rest == whole[4:]
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


SCOPES = ('vitdown', 'mmpretrain', 'mmdet', 'mmengine')


@pytest.mark.parametrize('scope', SCOPES)
def test_hooks_and_losses_are_found_from_any_default_scope(tmp_path, teacher_file, scope):
    teacher = dict(teacher=cnn(6), teacher_checkpoint=teacher_file)
    hooks = [
        dict(type='SMMixHook', switch_prob=1.0),
        dict(type='USKDHook'),
        dict(type='DistillationHook', losses=dict(loss_kd=dict(type='KDLoss')), **teacher),
        dict(type='StopDistillHook', stop_epoch=9),
    ]
    wrapper = dict(
        type='DistilledClassifier',
        student=classifier(),
        distill_losses=dict(loss_nkd=dict(type='NKDLoss')),
        **teacher,
    )
    for model, own in ((classifier(), hooks), (wrapper, hooks[:1])):
        model = build(model)
        steps = watch(model)
        train(model, tmp_path / type(model).__name__, own, epochs=1, scope=scope)
        names = {'loss_uskd', 'loss_kd'} if own is hooks else {'loss_nkd'}
        assert set(steps[0]) == {'loss', 'loss_fine', 'loss_con'} | names


def test_a_wrapper_in_another_default_scope(teacher_file):
    init_default_scope('mmpretrain')
    config = dict(
        type='vitdown.DistilledClassifier',
        student={**classifier(), 'type': 'ImageClassifier'},
        distill_losses=dict(loss_kd=dict(type='KDLoss')),
        teacher={**cnn(6), 'type': 'ImageClassifier'},
        teacher_checkpoint=teacher_file,
    )
    assert isinstance(MODELS.build(config).distill_losses['loss_kd'], KDLoss)


class Blobs(Images):
    """Noisy images around the centres of six classes, of which two each are near one another."""

    def __init__(self, num: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(num, 3, 16, 16, generator=generator)
        self.images += blob_centres()[torch.arange(num) % NUM_CLASSES]


def blob_centres() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    pairs = torch.randn(3, 1, 3, 4, 4, generator=generator).expand(3, 2, 3, 4, 4)
    own = 0.1 * torch.randn(3, 2, 3, 4, 4, generator=generator)
    return 0.5 * nn.functional.interpolate((pairs + own).flatten(0, 1), scale_factor=4)


class BestGuess(nn.Module):
    """The teacher that knows the centres and the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Flatten()
        self.centres = nn.Parameter(blob_centres().flatten(1))

    def forward(self, x):
        return self.score(-(x.flatten(1)[:, None] - self.centres).square().sum(2) / 2)


def test_students_learn_how_the_teacher_sees_other_classes(tmp_path):
    teacher = BestGuess()
    test = Blobs(600, seed=1)
    labels = torch.arange(600) % NUM_CLASSES
    with torch.no_grad():
        guess = teacher(test.images)
    assert 0.6 < (guess.argmax(1) == labels).float().mean() < 0.97
    divergence = {}
    for name in ('none', 'nkd'):
        hooks = [NKDHook(teacher, taps=dict(teacher_logits='score'))] if name == 'nkd' else []
        model = build(cnn(4))
        train(model, tmp_path / name, hooks, dataset=Blobs(96, seed=0), batch_size=24, epochs=8)
        with torch.no_grad():
            logits = model.eval()(test.images)
        nontarget = nkd_parts(logits, guess, labels)[1] - nkd_parts(guess, guess, labels)[1]
        divergence[name] = nontarget.item()
    assert 0 < divergence['nkd'] < 0.85 * divergence['none']


def test_the_weak_classifier_learns(tmp_path):
    """Two and a half times better than guessing, on a middle layer and with its small weight."""

    class Keep(USKDHook):
        def after_train(self, runner):
            self.weak = self.attached.module['loss_uskd'].fc
            super().after_train(runner)

    hook = Keep(in_channels=8, taps=dict(student_mid='backbone.layer2'))
    model = build(cnn(4))
    train(model, tmp_path, [hook], dataset=Blobs(384, seed=0), batch_size=24, epochs=8)
    tap = dict(mid=Tap.parse('backbone.layer2', 'student_mid', model))
    with torch.no_grad(), Recorder(model.eval(), tap) as recorder:
        model(Blobs(600, seed=1).images)
        guess = hook.weak(recorder['mid']).argmax(1)
    assert (guess == torch.arange(600) % NUM_CLASSES).float().mean() > 2.5 / NUM_CLASSES


class Witness(nn.Module):
    """A teacher that remembers how it was called."""

    def __init__(self):
        super().__init__()
        self.head = nn.Module()
        self.head.fc = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, NUM_CLASSES))
        self.norm = nn.BatchNorm2d(3)
        self.calls = []

    def forward(self, x):
        logits = self.head.fc(self.norm(x))
        self.calls.append((self.training, torch.is_grad_enabled(), x.clone(), logits.clone()))
        return logits


def test_teacher_is_frozen_and_sees_the_augmented_images(tmp_path):
    teacher = Witness()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    config = classifier()
    config['data_preprocessor']['batch_augments'] = dict(
        augments=[dict(type='mmpretrain.Mixup', alpha=0.8)]
    )
    model = build(config)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    runner = train(model, tmp_path, [NKDHook(teacher)], epochs=1)
    assert [call[:2] for call in teacher.calls] == [(False, False)] * 2
    for call, images in zip(teacher.calls, seen, strict=True):
        assert torch.equal(call[2], images)
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not any(p.requires_grad for p in teacher.parameters())
    own = {id(p) for p in teacher.parameters()}
    groups = runner.optim_wrapper.param_groups
    assert not own & {id(p) for group in groups for p in group['params']}


def test_released_behaviour_moves_the_teacher(tmp_path):
    teacher = Witness()
    train(build(classifier()), tmp_path, [NKDHook(teacher, teacher_eval=False)], epochs=1)
    assert [call[0] for call in teacher.calls] == [True, True]
    assert teacher.norm.running_mean.abs().sum() > 0


def test_teacher_gets_images_in_its_own_normalisation(tmp_path):
    teacher = Witness()
    teacher.data_preprocessor = MODELS.build(
        dict(type='mmpretrain.ClsDataPreprocessor', mean=[1, 2, 3], std=[2, 4, 5], to_rgb=True)
    )
    config = classifier()
    config['data_preprocessor'].update(mean=[3.0, 2.0, 5.0], std=[1.0, 2.0, 4.0])
    model = build(config)
    runner = train(model, tmp_path, [NKDHook(teacher)], epochs=1)
    raw = torch.stack([runner.train_dataloader.dataset[i]['inputs'] for i in range(6)])
    mean, std = torch.tensor([1.0, 2, 3]).view(3, 1, 1), torch.tensor([2.0, 4, 5]).view(3, 1, 1)
    torch.testing.assert_close(teacher.calls[0][2], (raw.flip(1) - mean) / std)


def test_a_teachers_file_says_how_its_images_are_normalised(tmp_path, teacher_file):
    """Also beside the model, where mmpretrain's configs have it."""
    model = cnn(6)
    preprocessor = dict(
        model.pop('data_preprocessor'), mean=[1.0, 2.0, 3.0], std=[2.0, 4.0, 5.0], to_rgb=True
    )
    file = tmp_path / 'teacher.py'
    file.write_text(f'{model=}\n{preprocessor=}\n'.replace('preprocessor=', 'data_preprocessor='))
    teacher = build_teacher(str(file), str(teacher_file))
    assert teacher.data_preprocessor.mean.flatten().tolist() == [1.0, 2.0, 3.0]
    assert input_conversion(teacher, teacher) is None
    unsaid = build_teacher(cnn(6), str(teacher_file))
    with pytest.raises(ValueError, match='does not say how its images are normalised'):
        input_conversion(teacher, unsaid)


def test_hook_and_wrapper_compute_the_same(tmp_path, teacher_file):
    student = build(cnn())
    inputs = torch.rand(4, 3, 16, 16)
    samples = [DataSample().set_gt_label(i) for i in range(4)]
    losses = dict(
        loss_nkd=dict(type='NKDLoss', gamma=2.0),
        loss_uskd=dict(type='USKDLoss', in_channels=8, num_classes=NUM_CLASSES),
    )
    taps = dict(student_mid='backbone.layer2')
    teacher = dict(teacher=cnn(6), teacher_checkpoint=teacher_file)
    wrapper = build(
        dict(type='DistilledClassifier', student=cnn(), distill_losses=losses, taps=taps, **teacher)
    )
    plain = set(student.state_dict())
    extra = {f'distill_losses.loss_uskd.fc.{name}' for name in ('weight', 'bias')}
    assert set(wrapper.state_dict()) == plain | extra
    wrapper.load_state_dict(
        {**student.state_dict(), **{k: v for k, v in wrapper.state_dict().items() if k in extra}}
    )
    hook = DistillationHook(losses, taps=taps, **teacher)
    runner = make_runner(student, tmp_path, [hook])
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    hook.before_run(runner)
    hook.attached.module.load_state_dict(wrapper.distill_losses.state_dict())
    hook.before_train(runner)
    results = []
    for model in (student, wrapper):
        model.train()
        out = model(inputs, samples, mode='loss')
        model.parse_losses(out)[0].backward()
        results.append(out)
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name])
    for name, parameter in wrapper.student.named_parameters():
        torch.testing.assert_close(parameter.grad, student.get_parameter(name).grad)
    hook.after_train(runner)


def test_wrapper_trains_resumes_and_keeps_its_teacher(tmp_path, teacher_file):
    config = dict(
        type='DistilledClassifier',
        student=classifier(),
        teacher=cnn(6),
        teacher_checkpoint=teacher_file,
        distill_losses=dict(loss_nkd=dict(type='NKDLoss')),
    )

    def run(folder, epochs, hooks=(), **kwargs):
        model = build(config)
        steps = watch(model)
        train(model, folder, list(hooks), epochs=epochs, **kwargs)
        return steps, model

    whole, expected = run(tmp_path / 'whole', 3)
    run(tmp_path / 'parts', 1)
    rest, model = run(tmp_path / 'parts', 3, resume=True)
    assert rest == whole[2:]
    assert set(model.state_dict()) == set(build(classifier()).state_dict())
    for name, parameter in expected.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)
    assert not expected.teacher.training
    assert {p.dtype for p in expected.double().teacher.parameters()} == {torch.float64}
    stopped, _ = run(tmp_path / 'stopped', 2, [StopDistillHook(1)])
    assert [set(step) for step in stopped] == 2 * [{'loss', 'loss_nkd'}] + 2 * [{'loss'}]


def test_student_of_a_wrapper_alone(tmp_path):
    """Its checkpoint holds the losses' weights, which the student does not take."""
    losses = dict(loss_uskd=dict(type='USKDLoss', in_channels=24, num_classes=NUM_CLASSES))
    wrapper = build(dict(type='DistilledClassifier', student=classifier(), distill_losses=losses))
    train(wrapper, tmp_path, [], epochs=1)
    file = tmp_path / 'epoch_1.pth'
    student = build(classifier(), seed=4)
    with pytest.raises(CheckpointError, match='convert.py cls_kd FILE OUT writes its student'):
        load_pretrained(student, str(file), prefix=None)
    weights = convert_state_dict(load_checkpoint_file(file)['state_dict'], 'cls_kd')
    assert weights.keys() == student.state_dict().keys()
    load_pretrained(student, str(file), 'cls_kd', prefix=None)
    for key, value in wrapper.student.state_dict().items():
        assert torch.equal(student.state_dict()[key], value), key


def test_a_wrapper_normalises_for_its_student(teacher_file):
    """Which is whom teachers' images are converted from, and SMMix asks for other mixings."""
    options = dict(
        type='mmpretrain.ClsDataPreprocessor',
        num_classes=NUM_CLASSES,
        mean=[1.0, 2.0, 3.0],
        std=[2.0, 4.0, 5.0],
        batch_augments=dict(augments=[dict(type='mmpretrain.Mixup', alpha=0.8)]),
    )
    teacher = dict(cnn(6), data_preprocessor={**options, 'std': [1.0, 1.0, 1.0]})
    config = dict(
        type='DistilledClassifier',
        student=cnn(),
        distill_losses=dict(loss_kd=dict(type='KDLoss')),
        teacher=teacher,
        teacher_checkpoint=teacher_file,
        data_preprocessor=options,
    )
    model = build(config)
    seen = []
    model.teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = torch.rand(2, 3, 16, 16)
    model._distiller.record(images)
    torch.testing.assert_close(seen[0], images * torch.tensor(options['std']).view(3, 1, 1))
    with pytest.raises(ValueError, match='remove batch_augments'):
        SMMixHook().prepare(build({**config, 'student': classifier()}))


def test_reidentifiers_learn_from_reidentifiers(tmp_path):
    model = build(reidentifier())
    steps = watch(model)
    hooks = [NKDHook(build(reidentifier(), seed=3)), USKDHook()]
    train(model, tmp_path, hooks, epochs=1)
    expected = {'loss_id', 'loss_metric', 'accuracy', 'loss_nkd', 'loss_uskd'}
    assert [set(step) for step in steps] == [expected] * 2


@pytest.mark.parametrize(
    ('hook', 'options'),
    [
        (NKDHook, dict(temperature=2.0, gamma=0.7, loss_weight=3.0)),
        (KDHook, dict(temperature=2.0, alpha=0.3)),
        (DKDHook, dict(temperature=2.0, alpha=0.3, beta=0.7)),
        (
            USKDHook,
            dict(alpha=0.3, beta=0.7, mu=0.2, rank_mode='prob', exclude_zero_targets=True),
        ),
        (ViTKDHook, dict(teacher_dims=8, alpha=0.3, beta=0.7, mask_ratio=0.2)),
    ],
)
def test_options_reach_the_loss(hook, options):
    own = dict(in_channels=4, num_classes=5) if hook is USKDHook else dict(teacher=BestGuess())
    (config,) = hook(**own, **options).losses.values()
    width = dict(student_dims=4) if hook is ViTKDHook else {}
    loss = MODELS.build({**config, **width})
    assert {name: getattr(loss, name) for name in options} == options


def test_warmup_of_the_distillation(tmp_path):
    """With learning rate 0; what the loss on labels loses grows with the distillation."""
    still = dict(optimizer=dict(type='SGD', lr=0.0), paramwise_cfg=None)
    steps = {}
    for warmup_epochs in (None, 0, 4):
        model = build(classifier())
        steps[warmup_epochs] = watch(model)
        options = dict(taps=dict(teacher_logits='score'), warmup_epochs=warmup_epochs, alpha=0.8)
        hooks = [] if warmup_epochs is None else [KDHook(BestGuess(), **options)]
        train(model, tmp_path / str(warmup_epochs), hooks, epochs=6, optim_wrapper=still)
    for epoch, factor in enumerate((0.25, 0.5, 0.75, 1, 1, 1)):
        plain, full, warm = (steps[key][2 * epoch] for key in (None, 0, 4))
        assert warm['loss_kd'] == pytest.approx(factor * full['loss_kd'])
        assert warm['loss'] == pytest.approx((1 - 0.8 * factor) * plain['loss'])


@pytest.mark.parametrize(
    'make',
    [
        lambda f: [nkd(f), StopDistillHook(1)],
        lambda f: [nkd(f, warmup_epochs=2)],
        lambda f: [SMMixHook(stop_epoch=1)],
    ],
    ids=['StopDistillHook', 'warmup_epochs', 'SMMixHook'],
)
def test_epochs_are_for_trainings_that_have_some(tmp_path, teacher_file, make):
    cfg = dict(by_epoch=False, max_iters=2)
    with pytest.raises(ValueError, match='counts epochs, but this training counts iterations'):
        train(build(classifier()), tmp_path, make(teacher_file), train_cfg=cfg)


def test_kd_takes_its_share_of_the_head_loss(tmp_path, teacher_file):
    losses = []
    for hooks in ([], [{**nkd(teacher_file), 'type': 'KDHook', 'alpha': 0.9}]):
        model = build(classifier())
        steps = watch(model)
        train(model, tmp_path / str(len(hooks)), hooks, epochs=1)
        losses.append(steps[0]['loss'])
    assert losses[1] == pytest.approx(0.1 * losses[0], rel=1e-6)


def test_stop_leaves_the_models_own_losses(tmp_path, teacher_file):
    model = build(classifier())
    steps = watch(model)
    hooks = [nkd(teacher_file), dict(type='USKDHook'), dict(type='StopDistillHook', stop_epoch=1)]
    train(model, tmp_path, hooks, epochs=2)
    assert [set(step) for step in steps[:2]] == 2 * [{'loss', 'loss_nkd', 'loss_uskd'}]
    assert [set(step) for step in steps[2:]] == 2 * [{'loss', 'loss_stopped'}]
    assert all(step['loss_stopped'] == 0 for step in steps[2:])


def test_parameters_train_like_the_classifier(tmp_path):
    class Inspect(USKDHook):
        def before_train(self, runner):
            super().before_train(runner)
            groups = runner.optim_wrapper.param_groups
            names = {id(p): n for n, p in runner.model.named_parameters()}
            self.groups = [{names.get(id(p)) for p in group['params']} for group in groups]

    hook = Inspect()
    train(build(classifier()), tmp_path, [hook], epochs=1)
    for name in ('weight', 'bias'):
        (group,) = (g for g in hook.groups if f'head.fc.{name}' in g)
        assert f'loss_uskd.loss_uskd.fc.{name}' in group


def test_weak_classifier_starts_as_pytorch_makes_it(tmp_path):
    class Inspect(USKDHook):
        def before_train(self, runner):
            super().before_train(runner)
            self.weight = self.attached.module['loss_uskd'].fc.weight.detach().clone()

    hook = Inspect()
    init = [dict(type='Constant', layer='Linear', val=0.5)]
    train({**classifier(), 'init_cfg': init}, tmp_path, [hook], epochs=1)
    assert hook.weight.abs().max() <= 24**-0.5
    assert hook.weight.std() > 0.05


@pytest.mark.parametrize('counts', [1, 4])
def test_gradient_accumulation_and_averaging(tmp_path, teacher_file, counts):
    class Inspect(USKDHook):
        def after_train_iter(self, runner, *args, **kwargs):
            self.weight = self.attached.module['loss_uskd'].fc.weight.detach().clone()

    hook = Inspect()
    model = build(classifier())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    runner = train(
        model,
        tmp_path,
        [nkd(teacher_file), hook, dict(type='EMAHook')],
        epochs=2,
        optim_wrapper=dict(accumulative_counts=counts),
    )
    for name, parameter in runner.model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    checkpoint = load_checkpoint_file(tmp_path / 'epoch_2.pth')
    averaged = {k.removeprefix('module.') for k in checkpoint['ema_state_dict']}
    assert averaged == set(before) | {'steps'}
    assert set(checkpoint['state_dict']) == set(before)
    assert torch.equal(checkpoint['loss_uskd']['loss_uskd.fc.weight'], hook.weight)


def validation() -> dict:
    loader = dict(dataset=Images(), batch_size=6, sampler=dict(type='DefaultSampler'))
    return dict(val_dataloader=loader, val_cfg=dict(), val_evaluator=Evaluator([]))


class Validation(Hook):
    """Keeps the weights of model and average around a validation, and saves during it."""

    priority = 'LOWEST'

    def __init__(self, average: EMAHook) -> None:
        self.average = average
        self.kept: list[tuple[dict, dict]] = []

    def _keep(self, runner: Runner) -> None:
        models = (runner.model, self.average.ema_model.module)
        self.kept.append(tuple(copy.deepcopy(model.state_dict()) for model in models))

    def after_train_epoch(self, runner: Runner) -> None:
        self._keep(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        self._keep(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        runner.save_checkpoint(runner.work_dir, 'best.pth')

    def before_train_epoch(self, runner: Runner) -> None:
        self._keep(runner)


@pytest.mark.parametrize('update_buffers', [False, True])
@pytest.mark.parametrize('name', ['uskd', 'smmix'])
def test_averages_are_validated(tmp_path, name, update_buffers):
    """Weights that a hook brings along are in no average, and in checkpoints all the same."""
    make = dict(
        uskd=lambda: (cnn(), USKDHook(in_channels=16)), smmix=lambda: (reidentifier(), SMMixHook())
    )
    config, hook = make[name]()
    average = EMAHook(update_buffers=update_buffers, momentum=0.3)
    look = Validation(average)
    train(build(config), tmp_path, [average, hook, look], **validation())
    _, (own, mean), (seen, rest), (back, again) = look.kept[:4]
    brought = own.keys() - mean.keys()
    assert {key.split('.')[0] for key in brought} == {
        dict(uskd='loss_uskd', smmix='smmix_token_head')[name]
    }
    parameters = dict(build(config).named_parameters())
    for key in mean if update_buffers else parameters:
        assert torch.equal(seen[key], mean[key])
        assert torch.equal(rest[key], own[key])
        assert torch.equal(again[key], mean[key])
    assert any(not torch.equal(own[key], mean[key]) for key in parameters)
    for key in own:
        assert torch.equal(back[key], own[key])
    best = load_checkpoint_file(tmp_path / 'best.pth')
    (attached,) = best['attached_modules']
    assert {f'{attached}.{key}' for key in best[attached]} == brought
    assert best['state_dict'].keys() == mean.keys()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(tmp_path, teacher_file, dtype):
    """Losses under mixed precision are near those in full precision, and in float32."""
    values = []
    for enabled in (False, True):
        model = build(classifier())
        steps = []
        hooks = [
            NKDHook(cnn(6), teacher_file),
            dict(type='USKDHook'),
        ]
        runner = make_runner(model, tmp_path / f'{dtype}{enabled}', hooks, epochs=1)
        step = model.train_step

        def autocast_step(*args, step=step, enabled=enabled, **kwargs):
            with torch.autocast('cpu', dtype, enabled=enabled):
                return step(*args, **kwargs)

        model.train_step = autocast_step
        parse = model.parse_losses

        def parse_and_keep(out, parse=parse, steps=steps):
            steps.append(out)
            return parse(out)

        model.parse_losses = parse_and_keep
        runner.train()
        values.append(steps[0])
    for name in ('loss_nkd', 'loss_uskd'):
        assert values[1][name].dtype == torch.float32
        torch.testing.assert_close(values[1][name], values[0][name], rtol=2e-2, atol=1e-2)


def test_failed_step_leaves_no_tap_behind(tmp_path, teacher_file):
    model = build(classifier())
    calls = []

    def fail(module, args):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError('out of luck')

    model.head.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match='out of luck'):
        train(model, tmp_path, [nkd(teacher_file)], epochs=1)
    assert not model.head.fc._forward_hooks


@pytest.mark.parametrize('moment', ['resume', 'layer', 'step', 'validation'])
def test_failed_training_leaves_the_model_as_it_was(tmp_path, teacher_file, moment):
    class Fail(Hook):
        def after_load_checkpoint(self, runner, checkpoint):
            raise KeyboardInterrupt

        def before_train_iter(self, runner, *args, **kwargs):
            def interrupt(*args):
                handle.remove()
                raise KeyboardInterrupt

            handle = runner.model.backbone.layers[-1].register_forward_hook(interrupt)

        def after_train_iter(self, runner, *args, **kwargs):
            raise KeyboardInterrupt

        def before_val(self, runner):
            raise KeyboardInterrupt

    model = build(classifier())
    parts = set(dict(model.named_modules()))
    hooks = [SMMixHook(), nkd(teacher_file), dict(type='USKDHook')]
    train(build(classifier()), tmp_path, hooks, epochs=1)
    options = {}
    names = dict(
        resume='after_load_checkpoint', layer='before_train_iter', step='after_train_iter',
        validation='before_val',
    )  # fmt: skip
    for name in set(names.values()) - {names[moment]}:
        delattr(Fail, name)
    if moment == 'resume':
        options.update(resume=True)
    if moment == 'validation':
        options.update(validation())
    hooks = [SMMixHook(), nkd(teacher_file), dict(type='USKDHook'), Fail()]
    with pytest.raises(KeyboardInterrupt):
        train(model, tmp_path, hooks, **options)
    assert set(dict(model.named_modules())) == parts
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


MISTAKES = {
    'no checkpoint': (lambda f: NKDHook(cnn(6)), ValueError, 'set teacher_checkpoint'),
    'other classes': (
        lambda f: NKDHook(build(cnn_with(7))),
        ValueError,
        r'\(6, 6\) from the student and \(6, 7\) from the teacher',
    ),
    'no such tap': (
        lambda f: nkd(f, taps=dict(student_logits='head.fcc')),
        ValueError,
        r"no module 'head.fcc': near are head.fc",
    ),
    'no path': (
        lambda f: nkd(f, taps=dict(student_logits=5)),
        ValueError,
        'taps.student_logits must be a module path, .*got 5',
    ),
    'useless tap': (
        lambda f: nkd(f, taps=dict(student_mid='backbone.layers.0')),
        ValueError,
        'No loss takes the tap',
    ),
    'other weights': (
        lambda f: {**nkd(f), 'teacher': cnn(8)},
        CheckpointError,
        'does not fit ImageClassifier',
    ),
    'no such file': (
        lambda f: {**nkd(f), 'teacher_checkpoint': 'nowhere.pth'},
        FileNotFoundError,
        'nowhere.pth does not exist',
    ),
    'name of a loss': (
        lambda f: DistillationHook(dict(kd=dict(type='KDLoss')), build(cnn(6))),
        ValueError,
        "must contain 'loss'",
    ),
    'no loss': (
        lambda f: DistillationHook([dict(type='KDLoss')]),
        ValueError,
        r'losses must be a dict such as dict\(loss_kd=',
    ),
    'no config of a loss': (
        lambda f: DistillationHook(dict(loss_a='KDLoss')),
        ValueError,
        r"loss_a must be a dict such as dict\(type='KDLoss'\), got 'KDLoss'",
    ),
    'no teacher': (
        lambda f: DistillationHook(dict(loss_kd=dict(type='KDLoss'))),
        ValueError,
        'there is no teacher',
    ),
    'no distillation loss': (
        lambda f: DistillationHook(dict(loss_x=dict(type='mmpretrain.CrossEntropyLoss'))),
        ValueError,
        'CrossEntropyLoss is no distillation loss',
    ),
    'width': (
        lambda f: USKDHook(in_channels=9),
        ValueError,
        r'set in_channels=24',
    ),
    'twice': (
        lambda f: DistillationHook({'loss': dict(type='KDLoss')}, build(cnn(6))),
        ValueError,
        r"There is a loss 'loss' already; .*losses=dict\(loss_2=",
    ),
    'warm-up': (lambda f: nkd(f, warmup_epochs=-1), ValueError, 'warmup_epochs must be'),
    'mode of the teacher': (lambda f: nkd(f, teacher_eval='no'), ValueError, 'teacher_eval must'),
    'taps': (lambda f: nkd(f, taps='head.fc'), ValueError, 'taps must be a dict such as'),
    'weight': (lambda f: nkd(f, gamma='x'), ValueError, 'gamma must be a number of at least 0'),
    "teacher's width": (
        lambda f: {**HOOKS['vitkd'](f), 'teacher_dims': 48},
        ValueError,
        'set teacher_dims=32',
    ),
    'nothing to stop': (lambda f: StopDistillHook(1), ValueError, 'nothing is distilled'),
}


def cnn_with(num_classes: int) -> dict:
    config = cnn(6)
    config['head']['num_classes'] = num_classes
    return config


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_get_one_clear_message(tmp_path, teacher_file, name):
    make, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        train(build(classifier()), tmp_path, [make(teacher_file)], epochs=1)


def test_teachers_with_misplaced_norms_are_refused():
    backbone = vit_backbone(type='mmpretrain.DeiT3')
    backbone['arch']['feedforward_channels'] = 96
    with pytest.raises(ValueError, match="backbone=dict\\(type='vitdown.DeiT3'"):
        build_teacher(classifier(backbone), 'weights.pth')


def test_only_a_resumed_training_gets_the_weak_classifier_back(tmp_path):
    class Inspect(USKDHook):
        def before_train(self, runner):
            super().before_train(runner)
            self.weight = self.attached.module['loss_uskd'].fc.weight.detach().clone()

    train(build(classifier()), tmp_path, [USKDHook()], epochs=1)
    file = tmp_path / 'epoch_1.pth'
    kept = load_checkpoint_file(file)['loss_uskd']['loss_uskd.fc.weight']
    for name in ('resume', 'start'):
        hook = Inspect()
        options = dict(load_from=str(file), resume=name == 'resume')
        train(build(classifier()), tmp_path / name, [hook], epochs=2, **options)
        assert torch.equal(hook.weight, kept) == (name == 'resume')


@pytest.mark.parametrize(
    ('before', 'after', 'message'),
    [
        ([], ['USKDHook'], 'has no loss_uskd: it was trained without'),
        (['USKDHook'], [], 'brings loss_uskd along.*by load_from'),
        (['SMMixHook', 'USKDHook'], ['USKDHook'], 'brings smmix_token_head along.*stop_epoch'),
        (
            ['SMMixHook', 'USKDHook'],
            ['USKDHook', 'SMMixHook'],
            'along smmix_token_head, loss_uskd, in this order, .* loss_uskd, smmix_token_head;',
        ),
    ],
)
def test_a_training_resumes_with_its_hooks(tmp_path, before, after, message):
    def run(hooks, **kwargs):
        hooks = [dict(type=name) for name in ('CompatibilityHook', *hooks)]
        train(build(classifier()), tmp_path, hooks, **kwargs)

    run(before, epochs=1)
    with pytest.raises(ValueError, match=message):
        run(after, epochs=2, resume=True)


TWO_CLASSIFIERS = {
    'DeiTClsHead': lambda x: [(x, x.flip(1))],
    'vitdown.DistilledClsHead': lambda x: [(x, x.flip(1))],
    'LeViTClsHead': lambda x: [x],
    'EfficientFormerClsHead': lambda x: [x],
}


@pytest.mark.parametrize('name', TWO_CLASSIFIERS)
def test_the_prediction_of_two_classifiers_is_tapped(name):
    model = nn.Module()
    scope = {} if '.' in name else dict(_scope_='mmpretrain')
    model.head = MODELS.build(dict(type=name, num_classes=5, in_channels=4, **scope)).eval()
    for parameter in model.head.parameters():
        nn.init.normal_(parameter)
    tap = Tap.parse('auto', 'teacher_logits', model)
    with torch.no_grad(), Recorder(model, dict(teacher_logits=tap)) as recorder:
        expected = model.head(TWO_CLASSIFIERS[name](torch.rand(2, 4)))
    assert len(tap.paths) == 2
    torch.testing.assert_close(recorder['teacher_logits'], expected)


class Twice(nn.Module):
    """A neck that gives one feature as those of two branches."""

    def forward(self, feats):
        return ([feats[-1], feats[-1]],)


def with_head(name: str, **kwargs) -> nn.Module:
    """A ViT with a head of mmpretrain that is not initialised to 0."""
    model = build(classifier())
    channels = [24, 24] if name == 'ConformerHead' else 24
    options = dict(num_classes=NUM_CLASSES, in_channels=channels, _scope_='mmpretrain')
    model.head = MODELS.build(dict(type=name, **options, **kwargs))
    for parameter in model.head.parameters():
        nn.init.normal_(parameter)
    if name == 'ConformerHead':
        model.neck = Twice()
    return model


OTHER_HEADS = {
    'ArcFaceClsHead': ({}, 'head'),
    'ConformerHead': (
        {},
        dict(module=['head.conv_cls_head', 'head.trans_cls_head'], pool='average'),
    ),
    'StackedLinearClsHead': (dict(mid_channels=[NUM_CLASSES]), 'head.layers.1.fc'),
    'VisionTransformerClsHead': (dict(hidden_dim=NUM_CLASSES), 'head.layers.head'),
}


@pytest.mark.parametrize('name', OTHER_HEADS)
def test_logits_that_are_not_the_prediction_must_be_named(tmp_path, teacher_file, name):
    options, tap = OTHER_HEADS[name]
    with pytest.raises(ValueError, match=f'{name} of .* does not predict .*student_logits='):
        train(with_head(name, **options), tmp_path / 'auto', [nkd(teacher_file)], epochs=1)
    model = with_head(name, **options)
    steps = watch(model)
    train(model, tmp_path / 'named', [nkd(teacher_file, taps=dict(student_logits=tap))], epochs=1)
    assert all(step['loss_nkd'] > 0 for step in steps)


def test_a_classifier_within_or_other_than_linear(tmp_path):
    """The weak classifier trains like a linear layer in the module that is named, if there is."""
    taps = dict(student_logits='head')
    model = with_head('ArcFaceClsHead')
    train(model, tmp_path / 'within', [USKDHook(taps=taps)], epochs=1)
    model = build(classifier())
    model.head.fc = nn.Sequential(nn.Unflatten(1, (24, 1)), nn.Conv1d(24, 6, 1), nn.Flatten())
    taps = dict(student_logits='head.fc')
    with pytest.raises(ValueError, match='Set num_classes in USKDHook'):
        train(model, tmp_path / 'conv', [USKDHook(taps=taps)], epochs=1)
    steps = watch(model)
    train(model, tmp_path / 'conv', [USKDHook(num_classes=6, taps=taps)], epochs=1)
    assert len(steps) == 2


@pytest.mark.parametrize('name', OTHER_HEADS)
def test_a_teacher_teaches_what_it_predicts(tmp_path, name):
    options, tap = OTHER_HEADS[name]
    teacher = with_head(name, **options).eval()

    def distiller(**taps):
        losses = build_losses(dict(loss_kd=dict(type='KDLoss')))
        return Distiller(build(classifier()), losses, FrozenTeacher(teacher), taps)

    images = torch.rand(2, 3, 16, 16)
    if name == 'ConformerHead':
        with pytest.raises(ValueError, match='predicts no tensor of logits; name the module'):
            distiller().record(images)['teacher_logits']
        logits = sum(teacher(images)) / 2
        seen = distiller(teacher_logits=tap).record(images)
    else:
        logits = teacher(images)
        seen = distiller().record(images)
    torch.testing.assert_close(seen['teacher_logits'], logits)


def test_the_prediction_is_looked_at_once(tmp_path, teacher_file):
    model = build(classifier())
    modes = []
    model.head.register_forward_hook(lambda head, *_: modes.append(head.training))
    train(model, tmp_path, [nkd(teacher_file)], epochs=2)
    assert modes == [True, False, True, True, True]
    assert model.head.training


MIDDLES = {
    'class token': (vit_backbone(), lambda tokens: tokens[:, 0]),
    'distillation token': (
        vit_backbone(type='vitdown.DistilledVisionTransformer', out_type='cls_token'),
        lambda tokens: tokens[:, 0],
    ),
    'no class token': (
        vit_backbone(with_cls_token=False, out_type='avg_featmap'),
        lambda tokens: tokens.mean(dim=1),
    ),
    'late class token': (
        dict(
            type='vitdown.CaiT',
            arch=dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=32),
            img_size=16,
            patch_size=4,
        ),
        lambda tokens: tokens.mean(dim=1),
    ),
}


@pytest.mark.parametrize('name', MIDDLES)
def test_middle_feature_is_the_class_token_or_the_mean(name):
    config, expected = MIDDLES[name]
    model = nn.Module()
    model.backbone = build(config).eval()
    tokens = []
    model.backbone.layers[0].ffn.register_forward_hook(lambda _, __, out: tokens.append(out))
    taps = {
        'mid': Tap.parse('auto', 'student_mid', model),
        'patches': Tap.parse(dict(module='backbone.ln1', pool='patches'), 'x', model),
    }
    with torch.no_grad(), Recorder(model, taps) as recorder:
        model.backbone(torch.rand(2, 3, 16, 16))
    torch.testing.assert_close(recorder['mid'], expected(tokens[0]))
    assert recorder['patches'].shape == (2, 16, 24)


def test_middle_layer_of_a_pyramid_must_be_said(tmp_path):
    arch = dict(
        embed_dims=(8, 8, 16, 24),
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 3),
        mlp_ratios=(2, 2, 2, 2),
        sr_ratios=(4, 2, 2, 1),
    )
    pvt = dict(
        type='vitdown.PyramidVisionTransformer',
        arch=arch,
        img_size=16,
        patch_sizes=(1, 2, 2, 1),
    )
    with pytest.raises(ValueError, match='No middle layer of PyramidVisionTransformer is known'):
        train(build(classifier(pvt)), tmp_path / 'auto', [USKDHook()], epochs=1)
    model = build(classifier(pvt))
    tap = Tap.parse('backbone.stages.1', 'student_mid', model)
    assert (tap.num_extra_tokens, Tap.parse('backbone.ln1', 'x', model).num_extra_tokens) == (0, 1)


def test_width_of_a_cnn_must_be_said(tmp_path):
    timm = dict(
        type='mmpretrain.TimmClassifier',
        model_name='test_vit',
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
    )
    for model in (build(cnn()), build(timm)):
        with pytest.raises(ValueError, match='Set in_channels in USKDHook'):
            train(model, tmp_path, [USKDHook()], epochs=1)


def test_testing_needs_no_teacher(tmp_path):
    """The config of a training with a teacher that is not here any more still evaluates."""
    model = build(classifier())
    hook = NKDHook(cnn(6), 'gone.pth')
    runner = make_runner(model, tmp_path, [hook], **validation())
    assert runner.val() == {}
    assert not model._forward_hooks


def test_teacher_from_a_config_file(tmp_path, teacher_file):
    """In the scope that the file names; only its model counts."""
    config = cnn(6)
    config['type'] = config['type'].removeprefix('mmpretrain.')
    path = tmp_path / 'teacher.py'
    path.write_text(f"default_scope = 'mmpretrain'\nmodel = {config!r}\n")
    model = build(classifier())
    steps = watch(model)
    train(model, tmp_path / 'file', [NKDHook(str(path), teacher_file)], epochs=1)
    again = build(classifier())
    expected = watch(again)
    train(again, tmp_path / 'dict', [nkd(teacher_file)], epochs=1)
    assert steps == expected
    path.write_text("default_scope = 'mmpretrain'\n")
    with pytest.raises(ValueError, match='has no model'):
        train(build(classifier()), tmp_path / 'none', [NKDHook(str(path), teacher_file)])
