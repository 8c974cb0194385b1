"""Distillation: taps into student and teacher, the losses between them, and a model of both."""

from .classifier import DistilledClassifier
from .distiller import (
    Distiller,
    Observation,
    batch_target,
    build_losses,
    check_loss_configs,
)
from .taps import Recorder, Tap, evaluation_mode, find_classifier, find_module
from .teacher import FrozenTeacher, build_teacher, get_logits

__all__ = [
    'DistilledClassifier',
    'Distiller',
    'FrozenTeacher',
    'Observation',
    'Recorder',
    'Tap',
    'batch_target',
    'build_losses',
    'build_teacher',
    'check_loss_configs',
    'evaluation_mode',
    'find_classifier',
    'find_module',
    'get_logits',
]
