"""Retrieval metrics, re-ranking and ranking lists: pure functions on tensors."""

from .ranking import evaluate_distances, evaluate_ranking
from .reranking import RerankedDistances, k_reciprocal_rerank
from .topk import RankingList, topk_distances, topk_ranking

__all__ = [
    'RankingList',
    'RerankedDistances',
    'evaluate_distances',
    'evaluate_ranking',
    'k_reciprocal_rerank',
    'topk_distances',
    'topk_ranking',
]
