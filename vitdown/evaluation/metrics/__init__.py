"""Metrics for MMEngine's evaluator."""

from .reid_metric import Ranking, ReIDMetric

__all__ = ['Ranking', 'ReIDMetric']
