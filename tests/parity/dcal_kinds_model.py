"""Checks of the reference files of DCAL and TransReID that concern model, losses and schedule."""

from collections.abc import Callable

from .golden import GoldenFile

KINDS: dict[str, Callable[[GoldenFile], None]] = {}
