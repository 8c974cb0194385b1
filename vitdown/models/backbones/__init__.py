from .vision_transformer import TokenFeatures, VisionTransformer

__all__ = ['TokenFeatures', 'VisionTransformer']
