from .bnneck_head import BNNeck, BNNeckHead
from .dcal_head import DCALHead
from .glca_branch import GLCABranch
from .jpm_head import JPMHead, jigsaw_order
from .token_label_head import TokenLabelHead

__all__ = [
    'BNNeck',
    'BNNeckHead',
    'DCALHead',
    'GLCABranch',
    'JPMHead',
    'TokenLabelHead',
    'jigsaw_order',
]
