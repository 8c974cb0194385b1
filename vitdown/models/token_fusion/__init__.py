"""Token fusion: policies that a plain ViT calls to run its blocks with fewer and fewer tokens."""

from .assignment import Assignment, attend_fused, fuse_attention, fuse_tokens, gather_tokens
from .base import TokenFusion, check_r, resolve_count
from .matching import cosine_scores, match_bipartite, multi_criteria_scores
from .mctf import MCTF
from .state import FusionState
from .tome import ToMe, parse_r

__all__ = [
    'MCTF',
    'Assignment',
    'FusionState',
    'ToMe',
    'TokenFusion',
    'attend_fused',
    'check_r',
    'cosine_scores',
    'fuse_attention',
    'fuse_tokens',
    'gather_tokens',
    'match_bipartite',
    'multi_criteria_scores',
    'parse_r',
    'resolve_count',
]
