from .bnneck_head import BNNeck, BNNeckHead
from .jpm_head import JPMHead, jigsaw_order

__all__ = ['BNNeck', 'BNNeckHead', 'JPMHead', 'jigsaw_order']
