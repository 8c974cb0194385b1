"""Tiny classification runs, for tests of training hooks."""

from pathlib import Path
from uuid import uuid4

import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch import nn
from torch.utils.data import Dataset

from vitdown.registry import MODELS

NUM_CLASSES = 6


class Images(Dataset):
    """Twelve noisy images of six classes."""

    metainfo = {}
    labels = list(range(NUM_CLASSES))

    def __init__(self, size: tuple[int, int] = (16, 16)) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(12, 3, *size, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        sample = DataSample().set_gt_label(self.labels[index % NUM_CLASSES])
        return dict(inputs=self.images[index], data_samples=sample)


def vit_backbone(**kwargs) -> dict:
    return {
        'type': 'vitdown.VisionTransformer',
        'arch': dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=32),
        'img_size': 16,
        'patch_size': 4,
        **kwargs,
    }


def classifier(backbone: dict | None = None, channels: int = 24, **kwargs) -> dict:
    return dict(
        type='mmpretrain.ImageClassifier',
        data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor', num_classes=NUM_CLASSES),
        backbone=backbone or vit_backbone(),
        head=dict(
            type='mmpretrain.LinearClsHead',
            num_classes=NUM_CLASSES,
            in_channels=channels,
            loss=dict(type='mmpretrain.CrossEntropyLoss'),
        ),
        **kwargs,
    )


def cnn(width: int = 4) -> dict:
    return classifier(
        dict(type='vitdown.CIFARResNet', depth=8, base_channels=width),
        4 * width,
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
    )


def reidentifier(**kwargs) -> dict:
    return dict(
        type='vitdown.ReIdentifier',
        backbone=vit_backbone(),
        head={'type': 'BNNeckHead', 'num_classes': NUM_CLASSES, 'in_channels': 24, **kwargs},
    )


def build(config: dict, seed: int = 0) -> nn.Module:
    init_default_scope('vitdown')
    torch.manual_seed(seed)
    model = MODELS.build(config)
    model.init_weights()
    return model


def make_runner(
    model: dict | nn.Module, work_dir: Path, hooks: list, epochs: int = 2, **kwargs
) -> Runner:
    scope = kwargs.pop('scope', 'vitdown')
    init_default_scope(scope)
    loader = dict(
        dataset=kwargs.pop('dataset', None) or Images(kwargs.pop('size', (16, 16))),
        batch_size=kwargs.pop('batch_size', 6),
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    optimizer = dict(type='AdamW', lr=1e-2, weight_decay=0.1)
    return Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=kwargs.pop('train_cfg', None) or dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper={
            'optimizer': optimizer,
            'paramwise_cfg': dict(bias_decay_mult=0.0),
            **kwargs.pop('optim_wrapper', {}),
        },
        param_scheduler=dict(type='CosineAnnealingLR', by_epoch=True, T_max=8, end=8),
        default_hooks=dict(
            epoch_seed=dict(type='EpochSeedHook'),
            checkpoint=dict(type='SafeCheckpointHook', interval=1),
        ),
        custom_hooks=hooks,
        randomness=dict(seed=kwargs.pop('seed', 7)),
        default_scope=scope,
        experiment_name=f'{work_dir.name}_{uuid4().hex}',
        log_level='ERROR',
        **kwargs,
    )


def train(model: dict | nn.Module, work_dir: Path, hooks: list, **kwargs) -> Runner:
    runner = make_runner(model, work_dir, hooks, **kwargs)
    runner.train()
    return runner


def watch(model: nn.Module) -> list[dict[str, float]]:
    """The losses of every training step from now on, as they go to the optimiser."""
    steps = []
    parse = model.parse_losses

    def parse_and_log(losses: dict):
        steps.append({name: value.item() for name, value in losses.items()})
        return parse(losses)

    model.parse_losses = parse_and_log
    return steps
