from types import ModuleType

import torch
from torch import Tensor, nn

from vitdown.registry import MODELS


@MODELS.register_module()
class MetricLearningLoss(nn.Module):
    """Any loss of pytorch-metric-learning, with a miner if wanted, by config.

    Computed in float32. Nested ``distance``, ``reducer`` and ``regularizer`` dicts are built too.
    Losses with a classifier of their own (ArcFace, CosFace, proxies ...) take ``num_classes`` and
    ``embedding_size`` and serve as ``loss_id`` of a head; pair and triplet losses as
    ``loss_metric``.

    Args:
        loss (dict): ``type`` from ``pytorch_metric_learning.losses`` and its arguments.
        miner (dict, optional): ``type`` from ``pytorch_metric_learning.miners``.
        loss_weight (float): Factor on the loss. Defaults to 1.0.

    Examples:
        >>> MetricLearningLoss(
        ...     dict(type='CircleLoss', m=0.25, gamma=64), miner=dict(type='MultiSimilarityMiner')
        ... )
    """

    def __init__(self, loss: dict, miner: dict | None = None, loss_weight: float = 1.0) -> None:
        super().__init__()
        try:
            from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
        except ImportError as error:
            raise ImportError(
                'MetricLearningLoss needs pytorch-metric-learning: '
                'pip install "vitdown[metric-learning]"'
            ) from error
        parts = {
            'distance': distances,
            'reducer': reducers,
            'embedding_regularizer': regularizers,
            'weight_regularizer': regularizers,
        }
        self.loss = _build(losses, loss, parts)
        self.miner = _build(miners, miner, parts) if miner else None
        self.loss_weight = loss_weight

    @property
    def has_classifier(self) -> bool:
        """Whether the loss holds class weights itself, so that a head builds no classifier."""
        return any(True for _ in self.loss.parameters())

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of features ``(B, D)`` with labels ``(B,)``."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            pairs = self.miner(features, labels) if self.miner else None
            return self.loss_weight * self.loss(features, labels, pairs)


def _build(module: ModuleType, cfg: dict, parts: dict) -> nn.Module:
    cfg = dict(cfg)
    name = cfg.pop('type')
    if not hasattr(module, name):
        known = sorted(n for n in dir(module) if n[0].isupper())
        raise ValueError(f'{module.__name__} has no {name!r}; choose from {", ".join(known)}')
    for key, part in parts.items():
        if isinstance(cfg.get(key), dict):
            cfg[key] = _build(part, cfg[key], parts)
    return getattr(module, name)(**cfg)
