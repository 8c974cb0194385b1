from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models.heads import ClsHead
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from vitdown.models.layers import take_tokens
from vitdown.registry import MODELS


@MODELS.register_module()
class TokenLabelHead(ClsHead):
    """Head of LV-ViT (arXiv 2104.10858): a classifier of the image and one of every patch.

    The score of an image is that of its class token plus half of the highest among its patches.
    Works on the output of a backbone with ``out_type='tokens'``, with fused tokens too: every
    patch is then classified by the token it went into.

    Args:
        num_classes (int): Number of classes K.
        in_channels (int): Width C of the tokens.
        token_loss_weight (float): Weight of the patches' mean loss. Defaults to 0.5.
        label_smooth_val (float): Label smoothing of image labels. Defaults to 0.
        **kwargs: Other arguments of mmpretrain's ``ClsHead`` except ``loss``.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        token_loss_weight: float = 0.5,
        label_smooth_val: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(loss=nn.CrossEntropyLoss(label_smoothing=label_smooth_val), **kwargs)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.token_loss_weight = token_loss_weight
        self.head = nn.Linear(in_channels, num_classes)
        self.aux_head = nn.Linear(in_channels, num_classes)

    def pre_logits(self, feats: tuple) -> Tensor:
        """Tokens ``(B, N, C)`` after the final norm, class token first."""
        return feats[-1].normed_tokens

    def forward(self, feats: tuple) -> Tensor:
        """Scores ``(B, K)``."""
        tokens = self.pre_logits(feats)
        return self.head(tokens[:, 0]) + 0.5 * self.aux_head(tokens[:, 1:]).amax(dim=1)

    def patch_logits(self, feats: tuple) -> Tensor:
        """Scores of every patch, ``(B, num_patches, K)``."""
        logits = self.aux_head(self.pre_logits(feats))
        source = feats[-1].source
        if source is not None:
            logits = take_tokens(logits, source)
        return logits[:, 1:]

    def loss(
        self, feats: tuple, data_samples: list[DataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Losses of images and of patches.

        Args:
            feats (tuple): ``TokenFeatures`` last.
            data_samples (list[DataSample]): With ``gt_label``, or ``gt_score`` where images are
                mixed; with ``token_score`` ``(K, h, w)``, the label of every patch, which the
                image's label stands for if there is none.
        """
        if 'gt_score' in data_samples[0]:
            target = torch.stack([sample.gt_score for sample in data_samples])
        else:
            labels = torch.cat([sample.gt_label for sample in data_samples])
            target = F.one_hot(labels, self.num_classes).float()
        logits = self.patch_logits(feats)
        if 'token_score' in data_samples[0]:
            patch_target = torch.stack([sample.token_score for sample in data_samples])
            patch_target = patch_target.flatten(2).transpose(1, 2)
            if patch_target.shape != logits.shape:
                raise ValueError(
                    f'token_score of {tuple(data_samples[0].token_score.shape)} does not fit '
                    f'{logits.shape[1]} patches and {self.num_classes} classes'
                )
        else:
            patch_target = target[:, None].expand_as(logits)
        cls_score = self.head(self.pre_logits(feats)[:, 0])
        patch_loss = F.cross_entropy(logits.flatten(0, 1), patch_target.flatten(0, 1))
        return {
            'loss_cls': self.loss_module(cls_score, target),
            'loss_token': self.token_loss_weight * patch_loss,
        }
