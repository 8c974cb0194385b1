"""Checks of the reference files of TransReID that concern evaluation and re-ranking."""

from collections.abc import Callable

from .golden import GoldenFile

KINDS: dict[str, Callable[[GoldenFile], None]] = {}
