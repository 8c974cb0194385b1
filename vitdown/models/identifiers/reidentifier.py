from collections.abc import Sequence

import torch
from mmengine.model import BaseModel, BaseTTAModel
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..backbones import TokenFeatures


@MODELS.register_module()
class ReIdentifier(BaseModel):
    """Re-identification model: backbone, optional neck, head; predicts one feature an image.

    Any backbone that returns a tuple works, e.g. ``dict(type='mmpretrain.ResNet', ...)`` or
    ``dict(type='mmpretrain.TIMMBackbone', ...)``: of the last output, vectors ``(B, C)`` are taken
    as they are and feature maps ``(B, C, H, W)`` are averaged; other shapes need a neck. Heads
    that work on tokens (``needs_tokens``) get what ``backbone.forward_tokens`` returns.

    Args:
        backbone (dict): Config of the backbone.
        head (dict): Config of the re-ID head.
        neck (dict, optional): Config of a module from feature tuple to feature tuple.
        data_preprocessor (dict, optional): Defaults to ``mmpretrain.ClsDataPreprocessor`` with
            mean and std 127.5 and RGB input, as in TransReID.
        init_cfg (dict, optional): MMEngine initialisation config.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        neck: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        if data_preprocessor is None:
            data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)
        if isinstance(data_preprocessor, dict):
            data_preprocessor = {'type': 'mmpretrain.ClsDataPreprocessor', **data_preprocessor}
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck) if neck else None
        self.head = MODELS.build(head)
        if self.head.task != 'reid':
            raise ValueError(
                f'{type(self.head).__name__}(task={self.head.task!r}) classifies images; use it in '
                "TokenClassifier, or set task='reid' for ReIdentifier"
            )
        if self.head.needs_tokens:
            if not hasattr(self.backbone, 'forward_tokens'):
                raise TypeError(
                    f'{type(self.head).__name__} works on tokens, which '
                    f'{type(self.backbone).__name__} does not offer; use VisionTransformer'
                )
            if neck:
                raise TypeError(f'{type(self.head).__name__} works on tokens and takes no neck')
        averages = getattr(self.neck, 'mode', None) == 'mean'
        if averages and getattr(self.backbone, 'token_fusion', None) is not None:
            raise ValueError(
                'The mean of fused tokens would count a large token like a small one; instead of '
                "the neck use out_type='avg_featmap', which averages over the patches"
            )
        width = _feature_width(self.backbone)
        if neck is None and width is not None and width != self.head.in_channels:
            raise ValueError(
                f"head.in_channels is {self.head.in_channels}, the backbone's features have "
                f'{width} channels; set model.head.in_channels={width}'
            )
        self.head.attach(self.backbone)
        self._has_sie = getattr(self.backbone, 'sie', None) is not None

    def init_weights(self) -> None:
        super().init_weights()
        if hasattr(self.head, 'init_from_backbone'):
            self.head.init_from_backbone(self.backbone)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence[DataSample] | None = None,
        mode: str = 'tensor',
    ) -> Tensor | dict[str, Tensor] | list[DataSample]:
        """Unified entry of MMEngine.

        Args:
            inputs (Tensor): Normalised images ``(B, 3, H, W)``.
            data_samples (Sequence[DataSample], optional): Labels and cameras; needed for
                ``'loss'``, and by backbones with side information.
            mode (str): ``'tensor'`` for test features ``(B, D)``, ``'logits'`` for scores of the
                training identities ``(B, num_classes)``, ``'loss'`` for a dict of losses,
                ``'predict'`` for the data samples with their ``feature`` set.
        """
        if mode == 'loss':
            if data_samples is None:
                raise ValueError("mode='loss' needs data_samples, which hold the labels")
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode == 'tensor':
            return self.head.predict(self.extract_feat(inputs, data_samples))
        if mode == 'logits':
            return self.logits(inputs, data_samples)
        raise ValueError(f"mode must be 'tensor', 'logits', 'loss' or 'predict', got {mode!r}")

    def extract_feat(
        self,
        inputs: Tensor,
        data_samples: Sequence[DataSample] | None = None,
        labels: Tensor | None = None,
        **side_information: Tensor,
    ) -> TokenFeatures | Tensor:
        """What the head works on: ``TokenFeatures``, or one vector ``(B, C)`` an image.

        Args:
            inputs (Tensor): Normalised images ``(B, 3, H, W)``.
            data_samples (Sequence[DataSample], optional): See :meth:`forward`.
            labels (Tensor, optional): ``(B,)``, or ``(B, num_classes)`` of mixed images, when
                losses are to be computed.
            **side_information (Tensor): ``camera_ids`` and ``view_ids`` ``(B,)`` for a backbone
                with side information, instead of the data samples' ones.
        """
        side_information = side_information or self.side_information(data_samples)
        if self.head.needs_tokens:
            options = self.head.token_options(labels)
            return self.backbone.forward_tokens(inputs, **side_information, **options)
        feats = self.backbone(inputs, **side_information)
        if self.neck is not None:
            feats = self.neck(feats)
        feat = feats[-1]
        if feat.ndim == 4:
            feat = feat.mean(dim=(2, 3))
        if feat.ndim != 2:
            raise ValueError(
                f'{type(self.backbone).__name__} returns features of shape {tuple(feat.shape)}; '
                "add a neck that pools them to (B, C), e.g. neck=dict(type='TokenPooling')"
            )
        return feat

    def side_information(self, data_samples: Sequence[DataSample] | None) -> dict[str, list[int]]:
        """Keyword arguments of the backbone: cameras and views, if it has an embedding of them."""
        if not self._has_sie or data_samples is None:
            return {}
        return dict(
            camera_ids=[sample.get('camera_id', -1) for sample in data_samples],
            view_ids=[sample.get('view_id', -1) for sample in data_samples],
        )

    def logits(self, inputs: Tensor, data_samples: Sequence[DataSample] | None = None) -> Tensor:
        """Scores of the training identities ``(B, num_classes)``, of the head's main branch."""
        return self.head.logits(self.extract_feat(inputs, data_samples))

    def loss(self, inputs: Tensor, data_samples: Sequence[DataSample]) -> dict[str, Tensor]:
        """Losses of the head, for images with ``gt_label``, or ``gt_score`` if they are mixed."""
        if 'gt_score' in data_samples[0]:
            labels = torch.stack([sample.gt_score for sample in data_samples])
        else:
            labels = torch.cat([sample.gt_label for sample in data_samples])
        return self.head.loss(self.extract_feat(inputs, data_samples, labels), labels)

    def metric_losses(
        self, inputs: Tensor, data_samples: Sequence[DataSample]
    ) -> dict[str, Tensor]:
        """The metric losses' part in :meth:`loss`, for images with ``gt_label``."""
        labels = torch.cat([sample.gt_label for sample in data_samples])
        return self.head.metric_losses(self.extract_feat(inputs, data_samples, labels), labels)

    def predict(
        self, inputs: Tensor, data_samples: Sequence[DataSample] | None = None
    ) -> list[DataSample]:
        """Data samples with ``feature`` ``(D,)``, not normalised."""
        features = self.head.predict(self.extract_feat(inputs, data_samples))
        if data_samples is None:
            data_samples = [DataSample() for _ in features]
        for sample, feature in zip(data_samples, features):
            sample.set_field(feature, 'feature', dtype=Tensor)
        return list(data_samples)


def _feature_width(backbone: nn.Module) -> int | None:
    """Channels of a backbone's last output, if it says so; Swin's widths differ by stage."""
    widths = getattr(backbone, 'num_features', None)
    if isinstance(widths, list):
        return widths[backbone.out_indices[-1]]
    width = getattr(backbone, 'embed_dims', None)
    return width if isinstance(width, int) else None


@MODELS.register_module()
class ReIDTTAModel(BaseTTAModel):
    """Averages the features of an image's augmented versions, e.g. the image and its mirror."""

    def merge_preds(self, data_samples_list: list[list[DataSample]]) -> list[DataSample]:
        """One data sample an image, with the mean feature."""
        merged = []
        for versions in data_samples_list:
            sample = versions[0]
            feature = torch.stack([version.feature for version in versions]).mean(dim=0)
            sample.set_field(feature, 'feature', dtype=Tensor)
            merged.append(sample)
        return merged
