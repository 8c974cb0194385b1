from .bnneck_head import BNNeck, BNNeckHead
from .classification_heads import LinearClsHead, VisionTransformerClsHead
from .dcal_head import DCALHead
from .distilled_cls_head import DistilledClsHead
from .glca_branch import GLCABranch
from .jpm_head import JPMHead, jigsaw_order
from .token_label_head import TokenLabelHead

__all__ = [
    'BNNeck',
    'BNNeckHead',
    'DCALHead',
    'DistilledClsHead',
    'GLCABranch',
    'JPMHead',
    'LinearClsHead',
    'TokenLabelHead',
    'VisionTransformerClsHead',
    'jigsaw_order',
]
