from typing import Any

from mmengine.model import trunc_normal_init
from mmengine.utils import to_2tuple
from mmpretrain.models.backbones import SwinTransformer as MMPretrainSwinTransformer
from torch import nn

from vitdown.registry import MODELS

from ..option_checks import check_flags, refuse_token_fusion
from ..pretrained import load_pretrained
from ..quantization import quantizable
from .stvit_stages import ConvStem


@MODELS.register_module()
@quantizable
class SwinTransformer(MMPretrainSwinTransformer):
    """mmpretrain's ``SwinTransformer`` that can be quantized and refuses weights that do not fit.

    Args:
        img_size (int | tuple[int, int]): Usual input size ``(H, W)``.
        conv_stem (bool): Whether two convolutions stand in place of patches, as in
            :class:`STViTSwin`: what to compare that with. Defaults to False.
        quant_cfg (dict, optional): See :func:`vitdown.models.quantization.convert`.
        token_fusion (None): Refused.
        init_cfg (dict, optional): ``dict(type='Pretrained', checkpoint=..., source=...)`` loads
            weights, see :func:`load_pretrained`; output norms may be missing.
        **kwargs: Other arguments of mmpretrain's class.
    """

    def __init__(
        self,
        *args: Any,
        img_size: int | tuple[int, int] = 224,
        conv_stem: bool = False,
        token_fusion: dict | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_token_fusion(self, token_fusion, 'attends in windows')
        check_flags(conv_stem=conv_stem)
        if conv_stem and not kwargs.keys().isdisjoint({'patch_size', 'patch_cfg'}):
            raise ValueError('conv_stem replaces patches: leave out patch_size and patch_cfg')
        super().__init__(*args, img_size=img_size, **kwargs)
        self.img_size = to_2tuple(img_size)
        if conv_stem:
            self.patch_embed = ConvStem(self.embed_dims, kwargs.get('in_channels', 3))

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``, else initialise as Swin's authors."""
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained':
            options = {k: v for k, v in self.init_cfg.items() if k != 'type'}
            own = [r'^norm\d\.', r'\.relative_position_index$']
            load_pretrained(self, **options, optional=own)
        else:
            super().init_weights()
            if not self.init_cfg:
                init_linear_layers(self)


def init_linear_layers(backbone: nn.Module) -> None:
    """Draw weights from a truncated normal distribution of deviation 0.02, without biases."""
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            trunc_normal_init(module, std=0.02)
