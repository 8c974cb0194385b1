"""Pictures of what a model does."""

from .pruning_report import draw_pruning_report, format_pruning_report
from .ranking_list import draw_ranking_list, save_picture
from .token_fusion_map import FusionTrace, draw_fusion, draw_groups, trace_fusion

__all__ = [
    'FusionTrace',
    'draw_fusion',
    'draw_groups',
    'draw_pruning_report',
    'draw_ranking_list',
    'format_pruning_report',
    'save_picture',
    'trace_fusion',
]
