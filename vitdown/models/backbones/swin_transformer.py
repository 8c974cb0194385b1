from typing import Any

from mmengine.utils import to_2tuple
from mmpretrain.models.backbones import SwinTransformer as MMPretrainSwinTransformer

from vitdown.registry import MODELS

from ..option_checks import refuse_token_fusion
from ..quantization import quantizable


@MODELS.register_module()
@quantizable
class SwinTransformer(MMPretrainSwinTransformer):
    """mmpretrain's ``SwinTransformer`` that can be quantized.

    Args:
        img_size (int | tuple[int, int]): Usual input size ``(H, W)``.
        quant_cfg (dict, optional): See :func:`vitdown.models.quantization.convert`.
        token_fusion (None): Refused.
        **kwargs: Other arguments of mmpretrain's class.
    """

    def __init__(
        self,
        *args: Any,
        img_size: int | tuple[int, int] = 224,
        token_fusion: dict | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_token_fusion(self, token_fusion, 'attends in windows')
        super().__init__(*args, img_size=img_size, **kwargs)
        self.img_size = to_2tuple(img_size)
