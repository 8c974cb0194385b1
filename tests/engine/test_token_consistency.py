from types import SimpleNamespace

import pytest
import torch
from mmpretrain.structures import DataSample

from vitdown.engine.hooks import TokenConsistencyHook
from vitdown.engine.hooks.token_consistency_hook import draw_r
from vitdown.models.losses.token_consistency import (
    TokenConsistencyLoss,
    label_confidence,
    squared_distance,
)
from vitdown.registry import MODELS

NUM_CLASSES = 4


def backbone(**kwargs):
    return dict(
        type='vitdown.VisionTransformer',
        arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32),
        img_size=32,
        patch_size=8,
        **{'token_fusion': dict(type='MCTF', r=4, min_tokens=2), **kwargs},
    )


HEADS = {
    'bnneck': dict(type='BNNeckHead'),
    'jpm': dict(type='JPMHead', num_groups=2),
    'dcal': dict(type='DCALHead', num_heads=2, feedforward_channels=32),
}


def build(head='classifier', **kwargs):
    torch.manual_seed(0)
    if head == 'classifier':
        config = dict(
            type='mmpretrain.ImageClassifier',
            data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor'),
            backbone=backbone(**kwargs),
            head=dict(
                type='mmpretrain.VisionTransformerClsHead',
                loss=dict(type='mmpretrain.CrossEntropyLoss'),
                num_classes=NUM_CLASSES,
                in_channels=16,
            ),
        )
    else:
        head = dict(num_classes=NUM_CLASSES, in_channels=16, **HEADS[head])
        config = dict(type='ReIdentifier', backbone=backbone(**kwargs), head=head)
    model = MODELS.build(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch():
    torch.manual_seed(1)
    labels = torch.arange(8) // 2
    samples = [DataSample().set_gt_label(int(label)) for label in labels]
    return torch.randn(8, 3, 32, 32), samples, labels


def start(model, iteration=0, **kwargs):
    hook = TokenConsistencyHook(**{'r_max': 4, **kwargs})
    runner = SimpleNamespace(model=model, seed=5, iter=iteration)
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    return hook, runner


def test_losses_of_a_classifier_are_those_of_two_passes():
    model = build().train()
    images, samples, labels = batch()
    hook, runner = start(model, iteration=3, r_max=4, conf_thr=0.2, teacher_loss_weight=0.5)
    losses = model(images, samples, mode='loss')
    r = draw_r(4, 5, 3)
    assert 0 < r < 4
    student = model.backbone(images)[-1]
    teacher = model.backbone(images, fusion_r=r)[-1]
    logits = model.head((student,))
    confidence = label_confidence(logits, labels)
    keep = confidence > 0.2
    assert 0 < keep.sum() < len(labels)
    torch.testing.assert_close(
        losses['loss_consistency'], 3 * squared_distance(student, teacher)[keep].mean()
    )
    torch.testing.assert_close(losses['loss'], model.head.loss((student,), samples)['loss'])
    torch.testing.assert_close(
        losses['teacher_loss'], 0.5 * model.head.loss((teacher,), samples)['loss']
    )
    hook.after_train(runner)
    assert set(model(images, samples, mode='loss')) == {'loss'}


def test_checkpointed_layers_recompute_the_same_branch():
    model = build(with_cp=True).train()
    images, samples, _ = batch()
    start(model, iteration=3, r_max=4)
    total, _ = model.parse_losses(model(images, samples, mode='loss'))
    total.backward()
    expected = build().train()
    start(expected, iteration=3, r_max=4)
    expected.parse_losses(expected(images, samples, mode='loss'))[0].backward()
    for (name, parameter), other in zip(model.named_parameters(), expected.parameters()):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)


@pytest.mark.parametrize('head', HEADS)
def test_reidentifiers_keep_the_students_statistics(head):
    images, samples, _ = batch()
    alone, both = build(head).train(), build(head).train()
    torch.manual_seed(2)
    alone(images, samples, mode='loss')
    start(both, r_max=3, conf_thr=0.0)
    torch.manual_seed(2)
    losses = both(images, samples, mode='loss')
    assert losses['loss_consistency'] > 0
    assert any(name.startswith('teacher_loss') for name in losses)
    state = both.state_dict()
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0, msg=name)
    both.parse_losses(losses)[0].backward()
    assert both.backbone.cls_token.grad.abs().sum() > 0


def test_evaluation_is_left_alone():
    model = build('bnneck').eval()
    images, samples, _ = batch()
    expected = model(images, mode='tensor')
    losses = set(model(images, samples, mode='loss'))
    start(model)
    assert torch.equal(model(images, mode='tensor'), expected)
    assert isinstance(model(images, samples, mode='predict'), list)
    assert set(model(images, samples, mode='loss')) == losses


def test_what_is_logged_besides_losses_is_the_students():
    model = build().train()
    model.head.cal_acc = True
    images, samples, _ = batch()
    start(model)
    losses = model(images, samples, mode='loss')
    assert losses.keys() == {'loss', 'accuracy_top-1', 'teacher_loss', 'loss_consistency'}


@pytest.mark.parametrize('when', ['before', 'within'])
def test_other_passes_of_the_backbone_do_not_count(when):
    """As other hooks make, before an iteration and after the student's within it."""
    images, samples, _ = batch()
    model = build().train()
    start(model, iteration=3, conf_thr=0.0)
    expected = model(images, samples, mode='loss')
    hook, runner = start(model := build().train(), iteration=3, conf_thr=0.0)
    if when == 'before':
        model.head((model.backbone(-images)[-1],))
        hook.before_train_iter(runner, 0)
    else:
        compute = model.loss

        def loss(inputs, data_samples):
            losses = compute(inputs, data_samples)
            model.head((model.backbone(-inputs)[-1],))
            return losses

        model.loss = loss
    torch.testing.assert_close(model(images, samples, mode='loss'), expected, rtol=0, atol=0)


def test_no_consistency_without_a_confident_image():
    loss = TokenConsistencyLoss(conf_thr=0.9)
    student = torch.randn(3, 5, requires_grad=True)
    teacher, labels = torch.randn(3, 5, requires_grad=True), torch.tensor([0, 1, 2])
    value = loss(student, teacher, torch.zeros(3, 4), labels)
    value.backward()
    assert value == 0
    assert student.grad.abs().sum() == 0
    # The threshold itself is not above it.
    assert TokenConsistencyLoss(conf_thr=0.25)(student, teacher, torch.zeros(3, 4), labels) == 0
    value = TokenConsistencyLoss(conf_thr=None)(student, teacher)
    value.backward()
    assert value > 0
    assert teacher.grad is None
    logits = torch.zeros(3, 4, dtype=torch.half)
    torch.testing.assert_close(label_confidence(logits, labels), torch.full((3,), 0.25))


def test_both_labels_of_a_mixed_image_count():
    logits = torch.randn(2, 4)
    scores = torch.tensor([[0.3, 0.0, 0.7, 0.0], [0.0, 1.0, 0.0, 0.0]])
    probabilities = logits.softmax(dim=1)
    expected = torch.stack([probabilities[0, 0] + probabilities[0, 2], probabilities[1, 1]])
    torch.testing.assert_close(label_confidence(logits, scores), expected)
    even = torch.full((2, 4), 0.25)
    torch.testing.assert_close(label_confidence(logits, even), torch.ones(2))
    # What label smoothing gives to all labels makes none of them right.
    torch.testing.assert_close(label_confidence(logits, 0.9 * scores + 0.1 / 4), expected)
    model = build().train()
    images, samples, _ = batch()
    for sample in samples:
        score = torch.zeros(NUM_CLASSES)
        score[sample.gt_label] += 0.6
        score[(sample.gt_label + 1) % NUM_CLASSES] += 0.4
        sample.set_gt_score(score)
    start(model, conf_thr=0.1)
    assert model(images, samples, mode='loss')['loss_consistency'] > 0


def test_drawn_numbers():
    drawn = [draw_r(8, 1, i) for i in range(200)]
    assert set(drawn) == set(range(8))
    assert drawn == [draw_r(8, 1, i) for i in range(200)]
    assert drawn != [draw_r(8, 2, i) for i in range(200)]
    fractions = {draw_r(0.05, 1, i) for i in range(200)}
    assert fractions == {0.0, 0.01, 0.02, 0.03, 0.04}
    assert draw_r(0, 1, 1) == 0


@pytest.mark.parametrize(
    ('model', 'options', 'message'),
    [
        (lambda: build(final_norm=False), {}, 'class token and final norm'),
        (
            lambda: build('bnneck', token_fusion=None),
            {},
            'needs token fusion, which VisionTransformer is without; vitdown.VisionTransformer',
        ),
        (
            lambda: build(out_type='avg_featmap'),
            {},
            "behind out_type='avg_featmap' sees nothing; use out_type='cls_token'",
        ),
        (lambda: build(out_type='featmap'), {}, "behind out_type='featmap' sees nothing"),
        (
            lambda: build(token_fusion=dict(type='MCTF', r=2, r_eval=6, min_tokens=2)).eval(),
            dict(r_max=6),
            r'r_max=6 lets the teacher leave \[17, 12, 7\] .* fewer than .* \[17, 15, 13\]; lower',
        ),
        (
            lambda: build(token_fusion=dict(type='MCTF', r=4)),
            dict(r_max=8),
            r'r_max=8 lets the teacher leave \[17, 10, 10\] .* fewer than .* \[17, 13, 10\]; lower',
        ),
        (
            lambda: build(token_fusion=dict(type='ToMe', r=[1, 0, 3])),
            dict(r_max=4),
            r'leave \[14, 14, 11\] .* fewer than the student.s \[16, 16, 13\]; lower r_max',
        ),
        (
            lambda: build(token_fusion=dict(type='MCTF', r=0.2)),
            dict(r_max=0.4),
            'r_max=0.4 lets the teacher',
        ),
        (
            lambda: build(token_fusion=dict(type='MCTF', layers=[])),
            {},
            'fuses none of the 17 tokens; set token_fusion.s r and layers',
        ),
        (lambda: torch.nn.Linear(2, 2), {}, 'with a backbone of its own; Linear has none'),
        (None, dict(r_max=0.005), 'r_max below 1 counts in steps of 0.01, got 0.005'),
        (None, dict(r_max=2.5), 'r_max must be a number of tokens'),
        (None, dict(conf_thr=1.2), 'conf_thr must be in'),
        (None, dict(conf_thr='x'), "conf_thr must be in .* got 'x'"),
        (None, dict(loss_weight=-1.0), 'loss_weight must be a number of at least 0'),
        (None, dict(teacher_loss_weight='x'), "teacher_loss_weight must be a number .* got 'x'"),
    ],
)
def test_mistakes_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        start(model() if model else build(), **options)


def test_teacher_is_held_against_what_the_student_fuses_in_training():
    model = build(token_fusion=dict(type='MCTF', r=4, r_eval=0, min_tokens=2)).eval()
    start(model)
    assert not model.backbone.token_fusion.training


def test_confidence_needs_a_classifier():
    model = build('bnneck')
    model.head.bnneck.classifier = None
    with pytest.raises(ValueError, match='no head with a linear classifier.* set conf_thr=None'):
        start(model)
    start(model, conf_thr=None)
