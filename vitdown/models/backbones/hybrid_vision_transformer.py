from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from vitdown.registry import MODELS

from ..quantization import quantizable
from .vision_transformer import VisionTransformer


@MODELS.register_module()
@quantizable
class HybridVisionTransformer(VisionTransformer):
    """ViT on the feature map of a ResNet, R50-ViT-B/16 (arXiv 2010.11929, Sec. 3.1).

    In place of patches of 16 pixels, the pixels of a feature map of stride 16: timm's ResNetV2
    with weight standardisation and group norm, and a linear projection. Everything behind is
    :class:`VisionTransformer`. Weights of timm's ``vit_base_r50_s16_*`` load with
    ``source='timm-hybrid'``.

    Args:
        arch (str | dict): See :class:`VisionTransformer`. Defaults to ``'vit-base'``.
        depths (Sequence[int]): Blocks in the stages of the ResNet. Defaults to ResNet-50's without
            its last stage, whose blocks the third one has.
        **kwargs: Other arguments of :class:`VisionTransformer`, except for those of patches.

    Raises:
        ImportError: If timm is missing.
        ValueError: If the patches are set, or the stages are not three.
    """

    def __init__(
        self, arch: str | dict = 'vit-base', depths: Sequence[int] = (3, 4, 9), **kwargs: Any
    ) -> None:
        try:
            from timm.layers import StdConv2dSame
            from timm.models.resnetv2 import ResNetV2
        except ImportError as error:
            raise ImportError(
                'HybridVisionTransformer needs timm: pip install "vitdown[timm]"'
            ) from error
        given = {'patch_size', 'stride', 'patch_cfg'} & kwargs.keys()
        if given or len(depths) != 3:
            raise ValueError(
                'HybridVisionTransformer has patches of 16 pixels from three stages of a ResNet: '
                f'leave out {", ".join(sorted(given)) or "all but three depths"}'
            )
        super().__init__(arch, patch_size=16, **kwargs)
        resnet = ResNetV2(
            layers=list(depths),
            num_classes=0,
            global_pool='',
            in_chans=self.patch_embed.projection.in_channels,
            preact=False,
            stem_type='same',
            conv_layer=partial(StdConv2dSame, eps=1e-8),
        )
        proj = nn.Conv2d(resnet.num_features, self.embed_dims, 1)
        self.patch_embed.projection = nn.Sequential(OrderedDict(resnet=resnet, proj=proj))
