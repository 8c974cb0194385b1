from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model.weight_init import trunc_normal_
from mmpretrain.models.heads import DeiTClsHead
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..quantization import quantizable


@MODELS.register_module()
@quantizable
class DistilledClsHead(DeiTClsHead):
    """Linear classifiers of a class and a distillation token that can be trained.

    mmpretrain's ``DeiTClsHead`` (same parameter names) only tests. The prediction is the mean of
    both classifiers' logits. Without a teacher, ``loss_on='average'`` trains that mean and
    ``'both'`` each classifier by itself; a distillation hook takes the pair from
    :meth:`logit_pair`.

    Args:
        num_classes (int): Number of classes.
        in_channels (int): Width of the tokens.
        loss_on (str): What the loss on labels sees: ``'average'``, as in NViT, ``'cls'``, the class
            token's classifier alone, as in DeiT, or ``'both'``.
        **kwargs: Other arguments of mmpretrain's ``DeiTClsHead``.
    """

    def __init__(
        self, num_classes: int, in_channels: int, loss_on: str = 'average', **kwargs: Any
    ) -> None:
        if loss_on not in ('average', 'cls', 'both'):
            raise ValueError(f"loss_on must be 'average', 'cls' or 'both', got {loss_on!r}")
        super().__init__(num_classes, in_channels, **{'init_cfg': None, **kwargs})
        self.loss_on = loss_on

    def init_weights(self) -> None:
        """Truncated normal weights of deviation 0.02, zero biases."""
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def logit_pair(self, feats: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Logits ``(B, num_classes)`` of class and distillation token, from backbone outputs."""
        cls_token, dist_token = self.pre_logits(feats)
        return self.layers.head(cls_token), self.layers.head_dist(dist_token)

    def forward(self, feats: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Mean of both logits ``(B, num_classes)``."""
        cls_logits, dist_logits = self.logit_pair(feats)
        return (cls_logits + dist_logits) / 2

    def loss(
        self, feats: Sequence[tuple[Tensor, Tensor]], data_samples: list[DataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Losses on labels, as ``loss_on`` says."""
        cls_logits, dist_logits = self.logit_pair(feats)
        if self.loss_on == 'average':
            return self._get_loss((cls_logits + dist_logits) / 2, data_samples, **kwargs)
        if self.loss_on == 'cls':
            return self._get_loss(cls_logits, data_samples, **kwargs)
        return self._get_loss(
            torch.cat((cls_logits, dist_logits)), [*data_samples, *data_samples], **kwargs
        )
