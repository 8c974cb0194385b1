import pytest
import torch

from vitdown.models.losses import MetricLearningLoss, TripletLoss, batch_hard_triplet_loss


def plain_batch_hard(features, labels, margin):
    """Definition, one anchor at a time, in float64."""
    features = features.double()
    losses = []
    for i, anchor in enumerate(features):
        distance = (features - anchor).norm(dim=1).clamp(min=1e-6)
        same = labels == labels[i]
        if same.sum() < 2 or same.all():
            continue
        difference = distance[same].max() - distance[~same].min()
        if margin is None:
            losses.append(torch.log1p(difference.exp()))
        else:
            losses.append((difference + margin).clamp(min=0))
    return torch.stack(losses).mean()


@pytest.mark.parametrize('margin', [None, 0.3])
@pytest.mark.parametrize(
    'labels', [[0, 0, 1, 1], [0, 0, 0, 1, 1, 2], [3, 1, 3, 3, 1, 0, 7], [5, 5, 2]]
)
def test_any_mix_of_labels_equals_the_definition(labels, margin):
    torch.manual_seed(0)
    labels = torch.tensor(labels)
    features = torch.randn(len(labels), 6)
    loss = batch_hard_triplet_loss(features, labels, margin)
    torch.testing.assert_close(
        loss.double(), plain_batch_hard(features, labels, margin), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize('labels', [[1, 1, 1], [0, 1, 2]])
def test_no_triplet_means_zero_loss_and_finite_gradients(labels):
    features = torch.randn(3, 4, requires_grad=True)
    loss = batch_hard_triplet_loss(features, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros(3, 4))


def test_identical_features_have_finite_gradients():
    features = torch.ones(4, 3, requires_grad=True)
    batch_hard_triplet_loss(features, torch.tensor([0, 0, 1, 1])).backward()
    assert torch.isfinite(features.grad).all()


def test_float32_under_autocast():
    torch.manual_seed(0)
    labels = torch.arange(8) // 2
    # Large offset: |x|^2 + |y|^2 - 2xy in half precision would be far off.
    features = torch.randn(8, 16) + 20
    with torch.autocast('cpu', torch.bfloat16):
        loss = TripletLoss()(features, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, TripletLoss()(features, labels), rtol=0, atol=0)


def test_loss_weight_and_bad_margin():
    labels, features = torch.tensor([0, 0, 1, 1]), torch.randn(4, 3)
    torch.testing.assert_close(
        TripletLoss(loss_weight=0.5)(features, labels), 0.5 * TripletLoss()(features, labels)
    )
    with pytest.raises(ValueError, match='margin must be None'):
        TripletLoss(margin=-1)


@pytest.mark.parametrize(
    'cfg',
    [
        dict(loss=dict(type='CircleLoss')),
        dict(loss=dict(type='TripletMarginLoss'), miner=dict(type='MultiSimilarityMiner')),
        dict(loss=dict(type='ContrastiveLoss', distance=dict(type='CosineSimilarity'),
                       pos_margin=1, neg_margin=0)),
        dict(loss=dict(type='ArcFaceLoss', num_classes=4, embedding_size=6)),
        dict(loss=dict(type='CosFaceLoss', num_classes=4, embedding_size=6)),
    ],
)  # fmt: skip
def test_metric_learning_losses_by_config(cfg):
    torch.manual_seed(0)
    loss = MetricLearningLoss(**cfg)
    features = torch.randn(8, 6, requires_grad=True)
    loss(features, torch.arange(8) // 2).backward()
    assert features.grad.abs().sum() > 0
    assert loss.has_classifier == ('num_classes' in cfg['loss'])


def test_unknown_metric_learning_loss_lists_the_known_ones():
    with pytest.raises(ValueError, match="no 'CircelLoss'.*CircleLoss"):
        MetricLearningLoss(dict(type='CircelLoss'))
