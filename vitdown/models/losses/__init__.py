from .distillation import (
    DistillationLoss,
    DKDLoss,
    KDLoss,
    NKDLoss,
    dkd_loss,
    kd_loss,
    nkd_loss,
)
from .metric_learning import MetricLearningLoss
from .nvit_distillation import CNNDistillationLoss, FullModelLoss
from .soft_target import SoftTargetLoss
from .token_consistency import TokenConsistencyLoss
from .triplet_loss import TripletLoss, batch_hard_triplet_loss
from .uncertainty import UncertaintyWeightedLoss
from .uskd import USKDLoss, uskd_loss
from .vitkd import ViTKDLoss

__all__ = [
    'CNNDistillationLoss',
    'DKDLoss',
    'DistillationLoss',
    'FullModelLoss',
    'KDLoss',
    'MetricLearningLoss',
    'NKDLoss',
    'SoftTargetLoss',
    'TokenConsistencyLoss',
    'TripletLoss',
    'USKDLoss',
    'UncertaintyWeightedLoss',
    'ViTKDLoss',
    'batch_hard_triplet_loss',
    'dkd_loss',
    'kd_loss',
    'nkd_loss',
    'uskd_loss',
]
