from collections.abc import Sequence

import torch
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..backbones import TokenFeatures


@MODELS.register_module()
class TokenClassifier(ImageClassifier):
    """mmpretrain's ``ImageClassifier`` with a head that works on tokens.

    For heads such as ``DCALHead(task='fgvc')``, which choose by the labels what the backbone
    computes, and see the images' tokens. Predictions are mmpretrain's, so are metrics, data sets
    and batch augmentation.

    Args:
        backbone (dict): Config of a backbone with ``forward_tokens``.
        head (dict): Config of the head.
        data_preprocessor (dict, optional): See ``ImageClassifier``.
        init_cfg (dict, optional): MMEngine initialisation config.

    Raises:
        TypeError: If the backbone does not offer tokens.
        ValueError: If the head is one for re-identification, or does not fit the backbone, or the
            backbone embeds cameras or views.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        network, token_head = MODELS.build(backbone), MODELS.build(head)
        if getattr(token_head, 'task', None) != 'fgvc':
            raise ValueError(
                f'{type(token_head).__name__} is no head of TokenClassifier; use '
                "DCALHead(task='fgvc'), re-identification heads in ReIdentifier, mmpretrain's "
                'heads in ImageClassifier'
            )
        if not hasattr(network, 'forward_tokens'):
            raise TypeError(
                f'{type(token_head).__name__} works on tokens, which {type(network).__name__} does '
                'not offer; use VisionTransformer'
            )
        if network.embed_dims != token_head.in_channels:
            raise ValueError(
                f"head.in_channels is {token_head.in_channels}, the backbone's features have "
                f'{network.embed_dims} channels; set model.head.in_channels={network.embed_dims}'
            )
        if getattr(network, 'sie', None) is not None:
            raise ValueError(
                'Images of classes have no cameras or views, which sie of the backbone embeds; set '
                'model.backbone.sie=None'
            )
        if data_preprocessor is None or isinstance(data_preprocessor, dict):
            # By its full name: the default is looked up in the scope of the config.
            data_preprocessor = {
                'type': 'mmpretrain.ClsDataPreprocessor',
                **(data_preprocessor or {}),
            }
        super().__init__(
            network, head=token_head, data_preprocessor=data_preprocessor, init_cfg=init_cfg
        )
        self.head.attach(self.backbone)

    def init_weights(self) -> None:
        super().init_weights()
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
            data_samples (Sequence[DataSample], optional): Needed for ``'loss'``.
            mode (str): ``'loss'`` for a dict of losses, ``'predict'`` for the data samples with
                their ``pred_score`` and ``pred_label``, ``'tensor'`` for logits ``(B,
                num_classes)`` whose softmax is ``pred_score``.
        """
        if mode == 'tensor':
            scores = self.scores(inputs)
            return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
        return super().forward(inputs, data_samples, mode)

    def extract_feat(self, inputs: Tensor, labels: Tensor | None = None) -> TokenFeatures:
        """``TokenFeatures``, with what the head wants for learning if there are labels."""
        return self.backbone.forward_tokens(inputs, **self.head.token_options(labels))

    def scores(self, inputs: Tensor) -> Tensor:
        """Probabilities ``(B, num_classes)``: the mean over the head's branches."""
        scores = self.head.predict(self.extract_feat(inputs))
        return scores / scores.sum(dim=1, keepdim=True)

    def loss(self, inputs: Tensor, data_samples: Sequence[DataSample]) -> dict[str, Tensor]:
        """Losses of the head, for images with ``gt_label``, or ``gt_score`` if they are mixed."""
        if 'gt_score' in data_samples[0]:
            labels = torch.stack([sample.gt_score for sample in data_samples])
        else:
            labels = torch.cat([sample.gt_label for sample in data_samples])
        return self.head.loss(self.extract_feat(inputs, labels), labels)

    def predict(
        self, inputs: Tensor, data_samples: Sequence[DataSample] | None = None
    ) -> list[DataSample]:
        """Data samples with ``pred_score`` ``(num_classes,)`` and ``pred_label``."""
        scores = self.scores(inputs)
        if data_samples is None:
            data_samples = [DataSample() for _ in scores]
        for sample, score, label in zip(data_samples, scores, scores.argmax(dim=1)):
            sample.set_pred_score(score).set_pred_label(label)
        return list(data_samples)
