import pytest
import torch
from mmpretrain.structures import DataSample

from vitdown.models.identifiers import ReIDTTAModel
from vitdown.registry import MODELS

VIT = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48),
    img_size=(32, 16),
    patch_size=8,
)
BNNECK = dict(type='BNNeckHead', num_classes=4, in_channels=24)
JPM = dict(
    type='JPMHead',
    num_classes=4,
    in_channels=24,
    num_groups=2,
)


def build(backbone=VIT, head=BNNECK, **kwargs):
    torch.manual_seed(0)
    model = MODELS.build(dict(type='ReIdentifier', backbone=backbone, head=head, **kwargs))
    model.init_weights()
    return model


def samples(n, **fields):
    return [
        DataSample(metainfo=dict(camera_id=i % 2, view_id=0, **fields)).set_gt_label(i // 2)
        for i in range(n)
    ]


@pytest.mark.parametrize('head', [BNNECK, JPM], ids=lambda head: head['type'])
def test_trains_and_predicts(head):
    model = build(head=head)
    images = torch.rand(8, 3, 32, 16)
    losses = model(images, samples(8), mode='loss')
    assert {'loss_id', 'loss_metric', 'accuracy'} == set(losses)
    loss, _ = model.parse_losses(losses)
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0 or name.endswith('qkv.bias'), name
    model.eval()
    predictions = model(images, samples(8), mode='predict')
    features = model(images)
    width = 24 if head is BNNECK else 24 * 3
    assert features.shape == (8, width)
    torch.testing.assert_close(torch.stack([p.feature for p in predictions]), features)
    assert predictions[0].camera_id == 0


def test_losses_need_labels():
    with pytest.raises(ValueError, match='needs data_samples, which hold the labels'):
        build()(torch.rand(2, 3, 32, 16), mode='loss')


def test_bnneck_bias_is_frozen_and_saved():
    model = build()
    assert not model.head.bnneck.bn.bias.requires_grad
    assert 'head.bnneck.bn.bias' in model.state_dict()
    assert 'head.bnneck.classifier.bias' not in model.state_dict()


def test_feature_after_the_batch_norm():
    model = build(head=dict(**BNNECK, neck_feat='after')).eval()
    model.head.bnneck.bn.running_mean.fill_(1.0)
    before = model.extract_feat(images := torch.rand(2, 3, 32, 16))
    torch.testing.assert_close(model(images), model.head.bnneck.bn(before))


def test_jpm_local_branch_has_the_shape_of_the_last_layer():
    backbone = dict(**VIT, drop_path_rate=0.4, qkv_bias=False)
    local = build(backbone, JPM).head.local_layer
    assert local.attn.qkv.bias is None
    assert local.attn.out_drop.drop_prob == pytest.approx(0.4)
    with pytest.raises(ValueError, match='class token'):
        build(dict(**VIT, with_cls_token=False, out_type='raw'), JPM)


def test_width_of_the_head_is_checked():
    with pytest.raises(ValueError, match=r'set model\.head\.in_channels=24'):
        build(head=dict(**{**BNNECK, 'in_channels': 30}))


@pytest.mark.parametrize('head', [BNNECK, JPM], ids=lambda head: head['type'])
def test_classifiers_start_small(head):
    for name, parameter in build(head=head).named_parameters():
        if 'classifier' in name:
            assert parameter.std().item() == pytest.approx(0.001, rel=0.5), name


def test_jpm_local_branch_starts_as_the_last_layer():
    model = build(head=JPM)
    for ours, theirs in zip(
        model.head.local_layer.parameters(), model.backbone.layers[-1].parameters()
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    'loss_id',
    [
        dict(type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        dict(type='MetricLearningLoss',
             loss=dict(type='ArcFaceLoss', num_classes=4, embedding_size=24)),
    ],
)  # fmt: skip
def test_identity_losses(loss_id):
    model = build(head=dict(**BNNECK, loss_id=loss_id))
    losses = model(torch.rand(8, 3, 32, 16), samples(8), mode='loss')
    assert losses['loss_id'].requires_grad
    has_classifier = any('bnneck.classifier' in key for key in model.state_dict())
    assert has_classifier == (loss_id['type'] != 'MetricLearningLoss')


def test_several_metric_losses():
    head = dict(
        **BNNECK,
        loss_metric=[
            dict(type='TripletLoss', margin=0.3),
            dict(type='MetricLearningLoss', loss=dict(type='CircleLoss'), loss_weight=0.1),
        ],
    )
    losses = build(head=head)(torch.rand(8, 3, 32, 16), samples(8), mode='loss')
    assert {'loss_metric_0', 'loss_metric_1'} <= set(losses)


@pytest.mark.parametrize(
    ('backbone', 'channels', 'neck'),
    [
        (dict(type='mmpretrain.ResNet', depth=18), 512, None),
        (dict(type='mmpretrain.ResNet', depth=18), 512,
         dict(type='mmpretrain.GeneralizedMeanPooling')),
        (dict(type='mmpretrain.TIMMBackbone', model_name='resnet10t'), 512, None),
        (dict(type='mmpretrain.TIMMBackbone', model_name='vit_tiny_patch16_224', img_size=(64, 32),
              depth=1), 192, dict(type='TokenPooling')),
        (dict(type='mmpretrain.TIMMBackbone', model_name='vit_tiny_patch16_224', img_size=(64, 32),
              depth=1), 192, dict(type='TokenPooling', mode='mean')),
    ],
)  # fmt: skip
def test_other_backbones(backbone, channels, neck):
    model = build(backbone, dict(**{**BNNECK, 'in_channels': channels}), neck=neck)
    losses = model(torch.rand(4, 3, 64, 32), samples(4), mode='loss')
    assert torch.isfinite(losses['loss_id'])
    assert model.eval()(torch.rand(2, 3, 64, 32)).shape == (2, channels)


def test_tokens_without_pooling_are_refused():
    backbone = dict(
        type='mmpretrain.TIMMBackbone',
        model_name='vit_tiny_patch16_224',
        img_size=(64, 32),
        depth=1,
    )
    model = build(backbone, dict(**{**BNNECK, 'in_channels': 192}))
    with pytest.raises(ValueError, match='TokenPooling'):
        model(torch.rand(2, 3, 64, 32))


def test_token_heads_refuse_other_backbones():
    with pytest.raises(TypeError, match='works on tokens, which ResNet does not offer'):
        build(dict(type='mmpretrain.ResNet', depth=18), JPM)


def test_cameras_of_the_samples_reach_the_side_information():
    model = build(dict(**VIT, sie=dict(num_cameras=2))).eval()
    image = torch.rand(1, 3, 32, 16).expand(2, -1, -1, -1)
    first, second = model(image, samples(2))
    assert not torch.allclose(first, second)
    with pytest.raises(ValueError, match='cameras 0..1'):
        model(image, [DataSample(), DataSample()])


def test_flip_test_time_augmentation_averages_features():
    model = build().eval()
    tta = ReIDTTAModel(module=model)
    images = torch.randint(0, 255, (2, 3, 32, 16), dtype=torch.uint8)
    versions = [images, images.flip(-1)]
    batch = dict(inputs=versions, data_samples=[samples(2), samples(2)])
    with torch.no_grad():
        merged = tta.test_step(batch)
        single = [
            torch.stack(
                [s.feature for s in model.test_step(dict(inputs=v, data_samples=samples(2)))]
            )
            for v in versions
        ]
    torch.testing.assert_close(
        torch.stack([s.feature for s in merged]), (single[0] + single[1]) / 2
    )


def test_heads_check_their_arguments():
    with pytest.raises(ValueError, match="neck_feat must be 'before' or 'after'"):
        build(head=dict(**BNNECK, neck_feat='behind'))
    with pytest.raises(ValueError, match='neither loss_id nor loss_metric'):
        build(head=dict(**BNNECK, loss_id=None, loss_metric=None))
