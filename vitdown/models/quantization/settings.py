from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from .functional import check_bits

GRANULARITIES = ('token', 'tensor', 'channel')
OVERRIDABLE = ('w_bits', 'a_bits', 'edge_bits', 'qkr', 'w_quant', 'act_granularity')


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern is about the module of that name, or one around it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f'{pattern}.*')


@dataclass(frozen=True)
class OFQ:
    """Settings of ``quant_cfg=dict(type='OFQ', ...)``.

    Args:
        w_bits (int, optional): Bits of the weights in the blocks, 2 to 8; None for full precision.
        a_bits (int, optional): Bits of the activations there; None for full precision.
        edge_bits (int, optional): Bits of weights and inputs of patch embedding and classifiers.
        qkr (bool): Query-key reparametrisation.
        act_granularity (str): Who shares a step of the activations: each ``'token'`` has one (the
            official scheme, for a fixed number of tokens), each ``'channel'``, or the ``'tensor'``
            has a single one. Values have one a channel except with ``'tensor'``.
        w_quant (str): ``'statsq'``, or ``'lsq'`` for a learnt step a row.
        skip (Sequence[str]): Patterns of module names that stay as they are.
        overrides (Mapping[str, dict]): Pattern of module names -> other ``w_bits``, ``a_bits``,
            ``edge_bits``, ``qkr``, ``w_quant`` or ``act_granularity``; the last pattern that fits
            counts.
    """

    w_bits: int | None = 4
    a_bits: int | None = 4
    edge_bits: int | None = 8
    qkr: bool = True
    act_granularity: str = 'token'
    w_quant: str = 'statsq'
    skip: Sequence[str] = ()
    overrides: Mapping[str, dict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ('w_bits', 'a_bits', 'edge_bits'):
            object.__setattr__(self, name, check_bits(getattr(self, name), f'quant_cfg.{name}'))
        for name, known in (('act_granularity', GRANULARITIES), ('w_quant', ('statsq', 'lsq'))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f'quant_cfg.{name} must be one of {known}, got {getattr(self, name)!r}'
                )
        if not isinstance(self.qkr, bool):
            raise ValueError(f'quant_cfg.qkr must be True or False, got {self.qkr!r}')
        if isinstance(self.skip, str):
            raise ValueError(f'quant_cfg.skip must be a list of patterns, got {self.skip!r}')
        for pattern, values in self.overrides.items():
            if not isinstance(values, Mapping):
                raise ValueError(
                    f'quant_cfg.overrides[{pattern!r}] must be a dict of settings, got {values!r}'
                )
            if unknown := sorted(set(values) - set(OVERRIDABLE)):
                raise ValueError(
                    f'quant_cfg.overrides[{pattern!r}] has {unknown}; it can hold {OVERRIDABLE}'
                )

    @classmethod
    def from_cfg(cls, cfg: 'Mapping | OFQ') -> 'OFQ':
        """Read a ``quant_cfg``.

        Raises:
            ValueError: For another type, unknown or impossible settings.
        """
        if isinstance(cfg, OFQ):
            return cfg
        cfg = dict(cfg)
        kind = cfg.pop('type', None)
        if kind != 'OFQ':
            raise ValueError(f"quant_cfg.type must be 'OFQ', got {kind!r}")
        known = cls.__dataclass_fields__
        if unknown := sorted(set(cfg) - set(known)):
            raise ValueError(f'quant_cfg has no settings {unknown}; it has {sorted(known)}')
        return cls(**cfg)

    def skips(self, name: str) -> bool:
        """Whether the module of that name, or one around it, stays as it is."""
        return any(fits(name, pattern) for pattern in self.skip)

    def at(self, name: str) -> 'OFQ':
        """The settings for the module of that name."""
        changes = {}
        for pattern in self.patterns_at(name):
            changes.update(self.overrides[pattern])
        return replace(self, **changes) if changes else self

    def patterns_at(self, name: str) -> list[str]:
        """Patterns of ``overrides`` that fit the module of that name, or one around it."""
        return [pattern for pattern in self.overrides if fits(name, pattern)]

    def unused_patterns(self, names: Sequence[str]) -> list[str]:
        """Patterns of ``skip`` and ``overrides`` that fit no module."""
        return [
            pattern
            for pattern in (*self.skip, *self.overrides)
            if not any(fnmatchcase(name, pattern) for name in names)
        ]
