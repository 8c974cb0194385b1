from mmpretrain.models import heads

from vitdown.registry import MODELS

from ..quantization import quantizable


@MODELS.register_module()
@quantizable
class LinearClsHead(heads.LinearClsHead):
    """mmpretrain's ``LinearClsHead`` that takes ``quant_cfg``."""


@MODELS.register_module()
@quantizable
class VisionTransformerClsHead(heads.VisionTransformerClsHead):
    """mmpretrain's ``VisionTransformerClsHead`` that takes ``quant_cfg``."""
