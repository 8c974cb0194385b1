from .cait import CaiT
from .deit3 import DeiT3
from .mobilenet_v1 import MobileNetV1
from .nvit import NViT, revit_arch
from .pvt import PyramidVisionTransformer
from .vision_transformer import TokenFeatures, VisionTransformer

__all__ = [
    'CaiT',
    'DeiT3',
    'MobileNetV1',
    'NViT',
    'PyramidVisionTransformer',
    'TokenFeatures',
    'VisionTransformer',
    'revit_arch',
]
