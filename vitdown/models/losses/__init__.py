from .metric_learning import MetricLearningLoss
from .triplet_loss import TripletLoss, batch_hard_triplet_loss

__all__ = ['MetricLearningLoss', 'TripletLoss', 'batch_hard_triplet_loss']
