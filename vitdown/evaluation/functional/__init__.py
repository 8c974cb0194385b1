"""Retrieval metrics, re-ranking and ranking lists: pure functions on tensors."""

from .ranking import evaluate_distances, evaluate_ranking

__all__ = ['evaluate_distances', 'evaluate_ranking']
