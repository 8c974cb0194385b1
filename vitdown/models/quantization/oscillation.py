import torch
from torch import Tensor


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
