"""DCAL for classification, in the place of mmpretrain's image classifier."""

import pytest
import torch
from mmpretrain.evaluation import Accuracy
from mmpretrain.structures import DataSample

from vitdown.registry import MODELS

VIT = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48),
    img_size=(16, 16),
    patch_size=4,
)
HEAD = dict(type='DCALHead', task='fgvc', num_classes=4, in_channels=24, num_heads=3)


def build(head=None, backbone=None, type='TokenClassifier', **kwargs):
    torch.manual_seed(0)
    head, backbone = {**HEAD, **(head or {})}, backbone or VIT
    model = MODELS.build(dict(type=type, backbone=backbone, head=head, **kwargs))
    model.init_weights()
    return model


def batch(n=8):
    torch.manual_seed(1)
    samples = [DataSample().set_gt_label(i % 4) for i in range(n)]
    return torch.randn(n, 3, 16, 16), samples


@pytest.mark.parametrize('pool', ['cls', 'mean'])
def test_loss_is_the_weighted_cross_entropy_of_three_branches(pool):
    model = build(dict(glca=dict(ratio=0.1, pool=pool)))
    losses = model(*batch(), mode='loss')
    parts = [losses[f'{branch}_id'] for branch in ('sa', 'glca', 'pwca')]
    torch.testing.assert_close(losses['loss'], 0.5 * sum(parts))
    assert not any('metric' in name for name in losses)
    losses['loss'].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def test_prediction_is_the_mean_of_the_branches_probabilities():
    model = build().eval()
    images, samples = batch()
    feats = model.extract_feat(images)
    necks = model.head.necks
    sa = necks['sa'].classifier(feats.normed_tokens[:, 0]).softmax(dim=1)
    glca = necks['glca'].classifier(model.head.glca(feats)).softmax(dim=1)
    torch.testing.assert_close(model.head.predict(feats), sa + glca)
    predictions = model(images, samples, mode='predict')
    scores = torch.stack([sample.pred_score for sample in predictions])
    torch.testing.assert_close(scores, (sa + glca) / 2)
    assert [p.pred_label.item() for p in predictions] == (sa + glca).argmax(dim=1).tolist()
    torch.testing.assert_close(model(images).softmax(dim=1), scores)
    assert model(images, mode='predict')[0].pred_score.shape == (4,)


@pytest.mark.parametrize('branch', ['sa', 'glca'])
def test_one_branch_alone(branch):
    model = build(dict(infer_branch=branch)).eval()
    scores = model(batch()[0]).exp()
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(8))


def test_sa_alone_is_the_plain_classifier():
    model = build(dict(infer_branch='sa')).eval()
    plain = MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone={**VIT, 'out_type': 'cls_token'},
            head=dict(type='mmpretrain.LinearClsHead', num_classes=4, in_channels=24),
        )
    ).eval()
    plain.backbone.load_state_dict(model.backbone.state_dict())
    plain.head.fc.load_state_dict(model.head.necks['sa'].classifier.state_dict())
    images, _ = batch()
    torch.testing.assert_close(model(images).softmax(dim=1), plain(images).softmax(dim=1))


def test_metric_of_mmpretrain_reads_the_predictions():
    model = build().eval()
    images, samples = batch()
    predictions = model(images, samples, mode='predict')
    metric = Accuracy(topk=(1,))
    metric.process(None, [sample.to_dict() for sample in predictions])
    right = sum(p.pred_label.item() == p.gt_label.item() for p in predictions)
    assert metric.evaluate(8)['accuracy/top1'] == pytest.approx(100 * right / 8)


def test_mixed_images():
    augments = dict(augments=dict(type='mmpretrain.Mixup', alpha=0.8))
    model = build(data_preprocessor=dict(num_classes=4, batch_augments=augments))
    images, samples = batch()
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
    losses = model(**data, mode='loss')
    assert torch.isfinite(losses['loss'])


def test_batch_of_one_learns_nothing_without_a_partner():
    with pytest.raises(ValueError, match='at least 2 images in a batch, got 1'):
        build()(*batch(1), mode='loss')


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(head=dict(task='reid')), ValueError, 're-identification heads in ReIdentifier'),
        (dict(type='ReIdentifier'), ValueError, 'use it in TokenClassifier'),
        (dict(head=dict(in_channels=36)), ValueError, 'set model.head.in_channels=24'),
        (dict(head=dict(normalize_parts=True)), ValueError, 'normalize_parts and neck_feat choose'),
        (dict(head=dict(neck_feat='after')), ValueError, 'normalize_parts and neck_feat choose'),
        (
            dict(head=dict(loss_id=None, loss_metric=dict(type='TripletLoss'))),
            ValueError,
            "task='fgvc' needs a loss_id that its linear classifiers learn from",
        ),
        (
            dict(backbone={**VIT, 'sie': dict(num_cameras=2)}),
            ValueError,
            'set model.backbone.sie=None',
        ),
        (
            dict(backbone=dict(type='mmpretrain.ResNet', depth=18)),
            TypeError,
            'ResNet does not offer',
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        build(**change)


def test_heads_of_mmpretrain_are_refused():
    head = dict(type='mmpretrain.LinearClsHead', num_classes=4, in_channels=24)
    with pytest.raises(ValueError, match="mmpretrain's heads in ImageClassifier"):
        MODELS.build(dict(type='TokenClassifier', backbone=VIT, head=head))
