"""Pictures of what a model does."""

from .ranking_list import draw_ranking_list, save_picture

__all__ = ['draw_ranking_list', 'save_picture']
