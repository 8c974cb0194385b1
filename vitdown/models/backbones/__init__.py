from .nvit import NViT, revit_arch
from .vision_transformer import TokenFeatures, VisionTransformer

__all__ = ['NViT', 'TokenFeatures', 'VisionTransformer', 'revit_arch']
