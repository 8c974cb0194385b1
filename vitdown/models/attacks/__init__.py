"""Attacks on a model's input, for adversarial training: functions of a loss and images."""

from .deconvolution import deconvolution_attack
from .pgd import pgd_attack

__all__ = ['deconvolution_attack', 'pgd_attack']
