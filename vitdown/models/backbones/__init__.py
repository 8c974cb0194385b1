from .distilled_vision_transformer import DistilledVisionTransformer
from .lv_vit import LVViT
from .nvit import NViT, revit_arch
from .stvit_swin import STViTSwin
from .t2t_vit import T2TViT
from .vision_transformer import TokenFeatures, VisionTransformer

__all__ = [
    'DistilledVisionTransformer',
    'LVViT',
    'NViT',
    'STViTSwin',
    'T2TViT',
    'TokenFeatures',
    'VisionTransformer',
    'revit_arch',
]
