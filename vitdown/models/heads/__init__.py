from .bnneck_head import BNNeck, BNNeckHead
from .dcal_head import DCALHead
from .glca_branch import GLCABranch
from .jpm_head import JPMHead, jigsaw_order

__all__ = ['BNNeck', 'BNNeckHead', 'DCALHead', 'GLCABranch', 'JPMHead', 'jigsaw_order']
