"""Retrieval metrics, re-ranking and ranking lists: pure functions on tensors."""

from .expansion import query_expansion
from .ranking import evaluate_distances, evaluate_ranking
from .repeated import evaluate_single_gallery_shot, evaluate_vehicleid
from .reranking import RerankedDistances, k_reciprocal_rerank
from .topk import RankingList, topk_distances, topk_ranking
from .verification import RocCurve, roc_curve, tpr_at_fpr

__all__ = [
    'RankingList',
    'RerankedDistances',
    'RocCurve',
    'evaluate_distances',
    'evaluate_ranking',
    'evaluate_single_gallery_shot',
    'evaluate_vehicleid',
    'k_reciprocal_rerank',
    'query_expansion',
    'roc_curve',
    'topk_distances',
    'topk_ranking',
    'tpr_at_fpr',
]
