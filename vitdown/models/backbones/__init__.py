from .cait import CaiT
from .cifar_resnet import CIFARResNet
from .deit3 import DeiT3
from .distilled_vision_transformer import DistilledVisionTransformer
from .hybrid_vision_transformer import HybridVisionTransformer
from .lv_vit import LVViT
from .mobilenet_v1 import MobileNetV1
from .nvit import NViT, revit_arch
from .pvt import PyramidVisionTransformer
from .stvit_deit import STViTDeiT
from .stvit_swin import STViTSwin
from .swin_transformer import SwinTransformer
from .t2t_vit import T2TViT
from .vision_transformer import TokenFeatures, VisionTransformer

__all__ = [
    'CIFARResNet',
    'CaiT',
    'DeiT3',
    'DistilledVisionTransformer',
    'HybridVisionTransformer',
    'LVViT',
    'MobileNetV1',
    'NViT',
    'PyramidVisionTransformer',
    'STViTDeiT',
    'STViTSwin',
    'SwinTransformer',
    'T2TViT',
    'TokenFeatures',
    'VisionTransformer',
    'revit_arch',
]
