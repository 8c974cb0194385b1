"""Hooks that train on attacked images, with classifiers and with ReIdentifier."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmpretrain.structures import DataSample

from vitdown.engine.hooks import (
    DeconvolutionTrainingHook,
    PGDTrainingHook,
    adversarial_training_hook,
)
from vitdown.registry import HOOKS, MODELS

PREPROCESSOR = dict(
    type='mmpretrain.ClsDataPreprocessor',
    mean=[10.0, 20.0, 30.0],
    std=[50.0, 60.0, 70.0],
    to_rgb=True,
    num_classes=4,
)
BACKBONE = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=16),
    img_size=(16, 16),
    patch_size=8,
    out_type='cls_token',
)
CLASSIFIER = dict(
    type='mmpretrain.ImageClassifier',
    data_preprocessor=PREPROCESSOR,
    backbone=BACKBONE,
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=4,
        in_channels=8,
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
    ),
)
REID = dict(
    type='ReIdentifier',
    data_preprocessor=PREPROCESSOR,
    backbone=BACKBONE,
    head=dict(
        type='BNNeckHead',
        num_classes=4,
        in_channels=8,
        loss_id=dict(type='mmpretrain.CrossEntropyLoss'),
        loss_metric=dict(type='TripletLoss', margin=None),
    ),
)
HOOK_CONFIGS = [
    dict(type='PGDTrainingHook', eps=8 / 255, steps=2),
    dict(type='PGDTrainingHook', norm='l2', eps=0.5, steps=2),
    dict(type='DeconvolutionTrainingHook', kernel_size=3, steps=2),
]


class Recorder:
    """Inputs that reach the model for the loss, and the modes of its modules."""

    def __init__(self, model):
        self.calls = []
        model.backbone.register_forward_pre_hook(
            lambda module, args: self.calls.append((args[0].detach().clone(), module.training))
        )


def attach(hook, model, wrap=False):
    runner = SimpleNamespace(model=SimpleNamespace(module=model) if wrap else model, hooks=[hook])
    hook.before_train(runner)
    return runner


def batch():
    torch.manual_seed(0)
    samples = [DataSample().set_gt_label(i % 4) for i in range(8)]
    return dict(
        inputs=torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8), data_samples=samples
    )


@pytest.mark.parametrize('model', [CLASSIFIER, REID], ids=['classifier', 'reid'])
@pytest.mark.parametrize('config', HOOK_CONFIGS, ids=['linf', 'l2', 'deconvolution'])
def test_training_sees_attacked_images_only(model, config):
    model = MODELS.build(model)
    model.init_weights()
    model.train()
    model.backbone.patch_embed.eval()
    hook = HOOKS.build(config)
    runner = attach(hook, model, wrap=config.get('norm') == 'l2')
    recorder = Recorder(model)
    data = model.data_preprocessor(batch(), training=True)
    keys = set(model.state_dict())
    losses = model(**data, mode='loss')
    assert torch.isfinite(model.parse_losses(losses)[0])
    seen, training = zip(*recorder.calls)
    attacks, (last, last_training) = seen[:-1], recorder.calls[-1]
    assert len(attacks) == (2 * 4 if 'kernel_size' in config else 2)
    assert last_training
    assert all(mode == ('kernel_size' in config) for mode in training[:-1])
    assert not model.backbone.patch_embed.training
    assert all(p.grad is None for p in model.parameters())
    assert set(model.state_dict()) == keys

    mean, std = (torch.tensor(PREPROCESSOR[key]).view(3, 1, 1) for key in ('mean', 'std'))
    pixels = (last * std + mean) / 255
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6
    delta = (last - data['inputs']) * std / 255
    if 'kernel_size' not in config:
        size = delta.abs().max() if 'norm' not in config else delta.flatten(1).norm(dim=1).max()
        assert 0.5 * config['eps'] < size < config['eps'] + 1e-5
    else:
        assert delta.abs().max() > 0.01

    recorder.calls.clear()
    model.eval()
    model(**data, mode='predict')
    hook.after_train(runner)
    model(**data, mode='loss')
    assert all(torch.equal(inputs, data['inputs']) for inputs, _ in recorder.calls)


@pytest.mark.parametrize(
    ('kind', 'attack', 'options'),
    [
        ('PGDTrainingHook', 'pgd_attack',
         dict(eps=0.1, norm='linf', steps=3, alpha=0.02, random_start=False)),
        ('DeconvolutionTrainingHook', 'deconvolution_attack',
         dict(kernel_size=5, steps=3, eta=0.3)),
    ],
)  # fmt: skip
def test_all_options_reach_the_attack(kind, attack, options, monkeypatch):
    seen = []

    def record(loss, images, *args, **kwargs):
        seen.append(kwargs)
        return images if kind == 'PGDTrainingHook' else (images, None, None)

    monkeypatch.setattr(adversarial_training_hook, attack, record)
    model = MODELS.build(CLASSIFIER)
    attach(HOOKS.build(dict(type=kind, **options)), model)
    model(**model.data_preprocessor(batch(), training=True), mode='loss')
    assert seen == [options]


def test_pgd_works_with_mixed_labels_and_deconvolution_refuses_them():
    mixing = dict(augments=[dict(type='mmpretrain.Mixup', alpha=1.0)])
    preprocessor = dict(PREPROCESSOR, batch_augments=mixing)
    model = MODELS.build(dict(CLASSIFIER, data_preprocessor=preprocessor))
    data = model.data_preprocessor(batch(), training=True)
    hook = PGDTrainingHook(steps=1)
    runner = attach(hook, model)
    assert torch.isfinite(model(**data, mode='loss')['loss'])
    hook.after_train(runner)
    attach(DeconvolutionTrainingHook(steps=1), model)
    with pytest.raises(ValueError, match='take Mixup and CutMix out of the batch augments'):
        model(**data, mode='loss')


def test_wrong_settings():
    with pytest.raises(ValueError, match="norm must be 'linf' or 'l2'.*'l1'"):
        PGDTrainingHook(norm='l1')
    for kind in (PGDTrainingHook, DeconvolutionTrainingHook):
        for steps in (0, 2.5):
            with pytest.raises(ValueError, match=f'an integer of at least 1, got {steps}'):
                kind(steps=steps)
    for size in (2, 3.0):
        with pytest.raises(ValueError, match=f'kernel_size must be odd and positive, got {size}'):
            DeconvolutionTrainingHook(kernel_size=size)
    for eps in (4, -1, float('nan'), float('inf')):
        with pytest.raises(ValueError, match=f'such as 4 / 255, got {eps}'):
            PGDTrainingHook(eps=eps)
    PGDTrainingHook(norm='l2', eps=4)
    with pytest.raises(ValueError, match='alpha must be positive, got -1'):
        PGDTrainingHook(alpha=-1)
    with pytest.raises(ValueError, match='eta must be positive, got nan'):
        DeconvolutionTrainingHook(eta=float('nan'))


def test_deconvolution_of_an_identity_with_one_image():
    """Batch norm has no statistics of one image; the attack leaves the training mode for it."""
    model = MODELS.build(REID)
    model.init_weights()
    model.train()
    attach(DeconvolutionTrainingHook(kernel_size=3, steps=1), model)
    data = model.data_preprocessor(batch(), training=True)
    for index, label in enumerate((0, 0, 0, 1, 1, 1, 1, 2)):
        data['data_samples'][index].set_gt_label(label)
    recorder = Recorder(model)
    assert torch.isfinite(model.parse_losses(model(**data, mode='loss'))[0])
    assert [(len(inputs), mode) for inputs, mode in recorder.calls] == [
        (3, True), (4, True), (1, False), (8, True),
    ]  # fmt: skip
    assert model.training


def test_inputs_without_names_are_refused():
    model = MODELS.build(CLASSIFIER)
    attach(PGDTrainingHook(), model)
    with pytest.raises(TypeError, match='without inputs and data_samples by name'):
        model(torch.zeros(1, 3, 16, 16), mode='loss')


@pytest.mark.parametrize('config', HOOK_CONFIGS, ids=['linf', 'l2', 'deconvolution'])
def test_models_that_recompute_layers(config):
    """Ours give gradients of images, mmpretrain's don't."""
    backbone = dict(type='mmpretrain.ResNet_CIFAR', depth=18, base_channels=8, stem_channels=8)
    cnn = dict(
        CLASSIFIER,
        backbone=dict(backbone, with_cp=True),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(CLASSIFIER['head'], in_channels=64),
    )
    vit = dict(CLASSIFIER, backbone=dict(BACKBONE, type='vitdown.VisionTransformer', with_cp=True))
    for classifier in (vit, cnn):
        model = MODELS.build(classifier)
        model.train()
        attach(HOOKS.build(config), model)
        data = model.data_preprocessor(batch(), training=True)
        if classifier is vit:
            assert torch.isfinite(model(**data, mode='loss')['loss'])
        else:
            with pytest.raises(ValueError, match='set with_cp=False in its backbone'):
                model(**data, mode='loss')


def test_other_errors_of_an_attack_are_left_as_they_are():
    model = MODELS.build(CLASSIFIER)
    attach(PGDTrainingHook(), model)
    with pytest.raises(RuntimeError, match='must match the size'):
        model(inputs=torch.zeros(1, 2, 16, 16), data_samples=[], mode='loss')


def test_two_attacks_are_refused():
    hooks = [PGDTrainingHook(), DeconvolutionTrainingHook()]
    runner = SimpleNamespace(model=MODELS.build(CLASSIFIER), hooks=hooks)
    for hook in hooks:
        with pytest.raises(ValueError, match='PGDTrainingHook and DeconvolutionTrainingHook would'):
            hook.before_train(runner)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('config', HOOK_CONFIGS, ids=['linf', 'l2', 'deconvolution'])
def test_distributed_mixed_precision(process_group, config):
    """Gradients of the attack neither reach the parameters nor confuse the reducer."""
    torch.manual_seed(0)
    model = MMDistributedDataParallel(MODELS.build(CLASSIFIER), find_unused_parameters=False)
    hook = HOOKS.build(config)
    runner = attach(hook, model.module, wrap=True)
    for _ in range(2):
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            data = model.module.data_preprocessor(batch(), training=True)
            losses = model(**data, mode='loss')
        model.module.parse_losses(losses)[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    hook.after_train(runner)
