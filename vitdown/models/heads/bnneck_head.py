from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn

from vitdown.registry import MODELS


class BNNeck(BaseModule):
    """Batch norm without bias between the feature and its identity classifier.

    Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-identification" (arXiv
    1903.07071, Sec. 3.6): metric losses see the feature before, the classifier the one after.

    Args:
        in_channels (int): Width D of the feature.
        num_classes (int): Number of training identities; 0 for no classifier.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(in_channels)
        self.bn.bias.requires_grad_(False)
        self.classifier = nn.Linear(in_channels, num_classes, bias=False) if num_classes else None

    def init_weights(self) -> None:
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Feature ``(B, D)`` after the batch norm."""
        return self.bn(x)


class ReIDHead(BaseModule):
    """What re-ID heads share: identity and metric losses of one feature, choice of test feature.

    Subclasses turn backbone outputs into features in ``loss`` and ``predict``.

    Args:
        num_classes (int): Number of training identities.
        in_channels (int): Width D of the feature.
        neck_feat (str): Test feature, ``'before'`` or ``'after'`` the batch norm.
        loss_id (dict, optional): Loss on the classifier's logits, or one with a classifier of its
            own (:class:`MetricLearningLoss` with ArcFace, CosFace ...) on the feature after BN.
        loss_metric (dict | Sequence[dict], optional): Losses on the feature before BN, called with
            features and labels.
        init_cfg (dict, optional): MMEngine initialisation config.
    """

    #: Whether the head wants :class:`TokenFeatures` instead of the backbone's output tuple.
    needs_tokens = False
    #: ``'reid'`` for :class:`ReIdentifier`, ``'fgvc'`` for :class:`TokenClassifier`.
    task = 'reid'

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        neck_feat: str = 'before',
        loss_id: dict | None = dict(type='mmpretrain.CrossEntropyLoss'),
        loss_metric: dict | Sequence[dict] | None = dict(type='TripletLoss'),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if neck_feat not in ('before', 'after'):
            raise ValueError(f"neck_feat must be 'before' or 'after', got {neck_feat!r}")
        if isinstance(loss_metric, dict):
            loss_metric = [loss_metric]
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.neck_feat = neck_feat
        self.loss_id = MODELS.build(loss_id) if loss_id else None
        self.loss_metric = nn.ModuleList(MODELS.build(cfg) for cfg in loss_metric or ())
        if self.loss_id is None and not self.loss_metric:
            raise ValueError('The head has neither loss_id nor loss_metric')

    def attach(self, backbone: BaseModule) -> None:
        """Called once when the model is built, for heads that are made after the backbone.

        Raises:
            ValueError: If the backbone has a distillation token, which re-ID heads and DCAL would
                take for a patch, or no class token, for which they would take a patch.
        """
        num_extra_tokens = getattr(backbone, 'num_extra_tokens', 1)
        if self.needs_tokens and num_extra_tokens == 0:
            raise ValueError(
                f'{type(self).__name__} works on the class token, which {type(backbone).__name__} '
                'lacks; set with_cls_token=True in the backbone'
            )
        if num_extra_tokens > 1:
            raise ValueError(
                f'{type(self).__name__} knows one class token, {type(backbone).__name__} has a '
                'distillation token, too; use VisionTransformer'
            )

    def token_options(self, labels: Tensor | None = None) -> dict:
        """What a head that works on tokens wants of ``backbone.forward_tokens`` this time.

        Args:
            labels (Tensor, optional): ``(B,)`` when losses are to be computed, else None.

        Returns:
            dict: Keyword arguments.
        """
        return {}

    def _build_bnneck(self) -> BNNeck:
        has_logits = self.loss_id is not None and not getattr(self.loss_id, 'has_classifier', False)
        return BNNeck(self.in_channels, self.num_classes if has_logits else 0)

    def logits(self, feats: Any) -> Tensor:
        """Scores of the training identities ``(B, num_classes)``, of the main branch."""
        return self._logits(*self._main_branch(feats))

    def _main_branch(self, feats: Any) -> tuple[Tensor, BNNeck]:
        """Feature ``(B, D)`` and its neck, from what the backbone gives this head."""
        raise NotImplementedError

    def _logits(self, feature: Tensor, bnneck: BNNeck) -> Tensor:
        if bnneck.classifier is None:
            raise ValueError(
                f'{type(self).__name__} has no linear classifier that could give logits; use a '
                "loss_id without one of its own, e.g. dict(type='mmpretrain.CrossEntropyLoss')"
            )
        return bnneck.classifier(bnneck(feature))

    def _feature_losses(self, feature: Tensor, bnneck: BNNeck, labels: Tensor) -> dict[str, Tensor]:
        """Losses of one feature ``(B, D)``: ``id`` and one entry a metric loss, and accuracy.

        Labels ``(B, num_classes)`` are those of mixed images, which have no one identity: metric
        losses are left out.
        """
        losses = {}
        mixed = labels.ndim == 2
        if self.loss_id is not None:
            after = bnneck(feature)
            if bnneck.classifier is None:
                if mixed:
                    raise ValueError(
                        'Images are mixed, but loss_id takes one identity an image; use '
                        "loss_id=dict(type='mmpretrain.CrossEntropyLoss')"
                    )
                losses['loss_id'] = self.loss_id(after, labels)
            else:
                logits = bnneck.classifier(after)
                losses['loss_id'] = self.loss_id(logits, labels)
                classes = labels.argmax(dim=1) if mixed else labels
                losses['accuracy'] = (logits.detach().argmax(dim=1) == classes).float().mean()
        elif mixed:
            raise ValueError('Images are mixed, which metric losses cannot learn from: set loss_id')
        if mixed:
            return losses
        for i, loss in enumerate(self.loss_metric):
            name = 'loss_metric' if len(self.loss_metric) == 1 else f'loss_metric_{i}'
            losses[name] = loss(feature, labels)
        return losses

    def metric_losses(self, feats: Any, labels: Tensor) -> dict[str, Tensor]:
        """The metric losses' part in ``loss``, whose arguments these are; labels ``(B,)``."""
        losses = self.loss(feats, labels)
        return {name: value for name, value in losses.items() if name.startswith('loss_metric')}

    def loss(self, feats: Any, labels: Tensor) -> dict[str, Tensor]:
        """Losses by name, and what else to log, of what the backbone gives this head."""
        raise NotImplementedError

    def _test_feature(self, feature: Tensor, bnneck: BNNeck) -> Tensor:
        return feature if self.neck_feat == 'before' else bnneck(feature)


@MODELS.register_module()
class BNNeckHead(ReIDHead):
    """The re-ID baseline's head: one feature, BNNeck, identity and metric losses.

    TransReID's baseline (arXiv 2102.04378, Sec. 3.1): cross-entropy on the logits after BN plus
    soft-margin batch-hard triplet loss on the feature before it; test feature before BN.
    Arguments are those of :class:`ReIDHead`.

    Examples:
        >>> import torch
        >>> head = BNNeckHead(num_classes=751, in_channels=384)
        >>> losses = head.loss(torch.rand(8, 384), torch.arange(8) // 4)
        >>> sorted(losses)
        ['accuracy', 'loss_id', 'loss_metric']
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bnneck = self._build_bnneck()

    def _main_branch(self, feats: Tensor) -> tuple[Tensor, BNNeck]:
        return feats, self.bnneck

    def loss(self, feature: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Losses of features ``(B, D)`` with labels ``(B,)``, or scores of mixed images."""
        return self._feature_losses(feature, self.bnneck, labels)

    def predict(self, feature: Tensor) -> Tensor:
        """Test feature ``(B, D)``, not normalised."""
        return self._test_feature(feature, self.bnneck)
