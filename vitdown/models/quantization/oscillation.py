from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from .functional import threshold_distance
from .modules import QKRProjection, QuantLinear


class OscillationTracker:
    """Counts how often the integer codes of a weight turn back.

    "Overcoming Oscillations in Quantization-Aware Training" (arXiv 2203.11086). A change of a code
    against the direction of its previous change is an oscillation; the frequency is its running
    mean. Memory is allocated at the first update; nothing waits for the device.

    Args:
        momentum (float): Weight of the newest observation. Defaults to 0.01.
        freeze_threshold (float): Codes that oscillate more often are held at their running mean,
            rounded, from the next update on; 0 for none. Defaults to 0.

    Attributes:
        codes (Tensor): Codes at the last update.
        frequency (Tensor): Running mean of the indicator of an oscillation.
        total (Tensor): Oscillations so far.
        direction (Tensor): Sign of (previous - new) at the last change.
        flips (Tensor): Whether the codes changed at the last update.
        frozen (Tensor): Codes that are held; with a threshold only.
        frozen_codes (Tensor): What at; 0 where never frozen.
    """

    def __init__(self, momentum: float = 0.01, freeze_threshold: float = 0.0) -> None:
        if not 0 < momentum < 1:
            raise ValueError(f'momentum must be between 0 and 1, got {momentum}')
        self.momentum = momentum
        self.freeze_threshold = freeze_threshold
        self.codes: Tensor | None = None

    def _start(self, codes: Tensor) -> None:
        self.codes = codes.clone()
        self.direction = torch.zeros_like(codes)
        self.frequency = torch.zeros(codes.shape, device=codes.device)
        self.total = torch.zeros(codes.shape, dtype=torch.int32, device=codes.device)
        self.flips = torch.zeros(codes.shape, dtype=torch.bool, device=codes.device)
        if self.freeze_threshold:
            self.frozen = torch.zeros_like(self.flips)
            self.frozen_codes = torch.zeros_like(codes)
            self.mean_codes = codes.float()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that was observed; empty before the first update."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from another tracker's :meth:`state_dict`."""
        for name, value in state.items():
            setattr(self, name, value.clone())

    @torch.no_grad()
    def update(self, codes: Tensor) -> Tensor:
        """Observe codes after a step.

        Args:
            codes (Tensor): Integers (any dtype).

        Returns:
            Tensor: The codes, those of frozen weights replaced.
        """
        if self.codes is None:
            self._start(codes)
        if self.freeze_threshold:
            codes = torch.where(self.frozen, self.frozen_codes, codes)
        change = (self.codes - codes).sign()
        self.flips = change != 0
        oscillates = change * self.direction < 0
        self.frequency.lerp_(oscillates.float(), self.momentum)
        self.total += oscillates
        self.direction = torch.where(self.flips, change, self.direction)
        self.codes = codes.clone()
        if self.freeze_threshold:
            freeze = self.frequency > self.freeze_threshold
            self.frozen |= freeze
            rounded = self.mean_codes.round().to(codes.dtype)
            self.frozen_codes = torch.where(freeze, rounded, self.frozen_codes)
            self.mean_codes.lerp_(codes.float(), self.momentum)
        return codes


class OscillationMonitor:
    """Tracks the codes of all low-bit weights of a model.

    Args:
        model (nn.Module): Quantized model; the products of query and key weights count as weights.
        momentum (float): See :class:`OscillationTracker`. Defaults to 0.01.
        threshold (float): Frequency above which a weight counts as oscillating. Defaults to 0.005.
        boundary_range (float): Half-width of the band around thresholds, in levels. Defaults to
            0.005.

    Raises:
        ValueError: If no weight of the model is quantized, or an option is out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.01,
        threshold: float = 0.005,
        boundary_range: float = 0.005,
    ) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f'threshold must be a frequency from 0 to 1, got {threshold}')
        if not 0 < boundary_range < 0.5:
            raise ValueError(
                f'boundary_range must be between 0 and 0.5 levels, got {boundary_range}'
            )
        self.threshold = threshold
        self.boundary_range = boundary_range
        self._sources = {name: (quantizer, read) for name, quantizer, read in _weights(model)}
        if not self._sources:
            raise ValueError(
                f'{type(model).__name__} has no quantized weights; set quant_cfg in its config'
            )
        self.trackers = {name: OscillationTracker(momentum) for name in self._sources}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """State of the tracker of each weight, about 11 bytes an entry."""
        return {name: tracker.state_dict() for name, tracker in self.trackers.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from another monitor's :meth:`state_dict`.

        Raises:
            ValueError: If it is of other weights.
        """
        if different := sorted(set(state) ^ set(self.trackers)):
            raise ValueError(
                f'The oscillation state is of other weights: {different[:5]} are quantized in one '
                'of both models only; resume with the quant_cfg that it was saved with'
            )
        for name, tracker in self.trackers.items():
            tracker.load_state_dict(state[name])

    @torch.no_grad()
    def update(self) -> None:
        """Observe the codes after a step of the optimizer."""
        for name, (quantizer, read) in self._sources.items():
            self.trackers[name].update(quantizer.integers(read())[0])

    @torch.no_grad()
    def summary(self) -> dict[str, dict[str, float]]:
        """Shares of each weight, and of all entries together under ``'total'``.

        Returns:
            dict: Name -> ``frac`` (entries with a frequency above the threshold), ``mean_f`` (mean
            frequency), ``flips`` (codes that changed at the last update) and ``band`` (entries
            within ``boundary_range`` of a threshold).
        """
        sums, sizes = [], []
        for name, tracker in self.trackers.items():
            quantizer, read = self._sources[name]
            distance = threshold_distance(quantizer.position(read()), quantizer.bits)
            shares = (
                tracker.frequency > self.threshold,
                tracker.frequency,
                tracker.flips,
                distance <= self.boundary_range,
            )
            sums.append(torch.stack([share.float().sum() for share in shares]))
            sizes.append(tracker.frequency.numel())
        # The only transfer to the host
        sums = torch.stack(sums).tolist()
        sums.append([sum(column) for column in zip(*sums)])
        sizes.append(sum(sizes))
        return {
            name: dict(zip(('frac', 'mean_f', 'flips', 'band'), (v / size for v in values)))
            for name, values, size in zip((*self.trackers, 'total'), sums, sizes)
        }


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, Callable[[], Tensor]]]:
    """Name, quantizer and reader of the weights in the blocks."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, 'weight_quant', None), nn.Identity):
            continue
        if isinstance(module, QKRProjection):
            yield f'{name}.value', module.weight_quant, module.value_weight
            yield f'{name}.product', module.product_quant, module.product
        elif isinstance(module, QuantLinear) and not module.is_edge:
            yield name, module.weight_quant, partial(getattr, module, 'weight')
