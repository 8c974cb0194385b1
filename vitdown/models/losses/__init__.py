from .metric_learning import MetricLearningLoss
from .token_consistency import TokenConsistencyLoss
from .triplet_loss import TripletLoss, batch_hard_triplet_loss
from .uncertainty import UncertaintyWeightedLoss

__all__ = [
    'MetricLearningLoss',
    'TokenConsistencyLoss',
    'TripletLoss',
    'UncertaintyWeightedLoss',
    'batch_hard_triplet_loss',
]
