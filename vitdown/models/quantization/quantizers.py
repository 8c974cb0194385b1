import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import torch
import torch.nn.functional as F
from mmengine import dist
from torch import Tensor, nn

from ..layers import resize_pos_embed
from .functional import (
    MIN_STEP,
    check_width,
    lsq,
    lsq_bounds,
    lsq_codes,
    lsq_initial_step,
    statsq,
    statsq_codes,
    statsq_position,
)


class StatsQuantizer(nn.Module):
    """Weights by the statistics of their rows, see :func:`statsq`; no parameters.

    Args:
        bits (int): 2 to 8.

    Attributes:
        boundary_range (float, optional): Restricts the gradient, see :func:`statsq`.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = check_width(bits)
        self.boundary_range: float | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """Quantized weight, float32, of the shape of ``weight``."""
        return statsq(weight, self.bits, self.boundary_range)

    def position(self, weight: Tensor) -> Tensor:
        """See :func:`statsq_position`."""
        return statsq_position(weight, self.bits)

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor, float]:
        """Codes int8, row scale ``(O,)`` and offset: ``scale * (codes + offset)`` is the weight."""
        codes, scale = statsq_codes(weight, self.bits)
        return codes, scale.flatten() / 2 ** (self.bits - 1), 0.5

    def extra_repr(self) -> str:
        return f'bits={self.bits}'


class LSQQuantizer(nn.Module):
    """Learnt steps, and learnt shifts before and after; see :func:`lsq`.

    Steps and shifts are 1-D parameters, so that no weight decay reaches them. The steps are set by
    the first batch that arrives (:meth:`calibrate`), and kept in checkpoints; a checkpoint without
    them loads too and leaves them to the first batch.

    Args:
        bits (int): 2 to 8.
        step_view (tuple[int, ...]): Shape in which the step broadcasts against the input. One
            entry is -1: the axis that the steps belong to.
        num_steps (int, optional): Number of steps; None if it follows from the size of the input
            and :func:`size_quantizers` is to find out.
        signed (bool, optional): Whether codes are signed; None to decide by the first batch.
        init_factor (float, optional): See :func:`lsq_initial_step`. Defaults to 2, or 4 if
            unsigned.
        shift_view (tuple[int, ...], optional): Shape in which the shifts broadcast; ``()`` for one
            shift a pixel, to be sized; None for no shifts.

    Attributes:
        name (str): Name within the model, for messages.
        per_token (bool): Whether each token (or column of tokens) has a step of its own.
        per_pixel (bool): Whether each pixel has shifts of its own.
        columns (int, optional): Tokens ``(B, H * W, C)`` have W columns and steps belong to them.
        num_tokens (int, optional): Their number ``H * W``.
        grid (tuple[int, int], optional): Patch grid ``(h, w)`` of the tokens, which steps of
            another grid are resized to on load; those of columns are resized to their number.
    """

    # Names that a checkpoint may lack, and those that may have another length
    optional_state = ('step', 'shift_before', 'shift_after', 'initialized', 'signed')
    resized_state = ('step', 'shift_before', 'shift_after')

    def __init__(
        self,
        bits: int,
        step_view: tuple[int, ...],
        num_steps: int | None = None,
        signed: bool | None = True,
        init_factor: float | None = None,
        shift_view: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.bits = check_width(bits)
        self.step_view = step_view
        self.axis = step_view.index(-1) - len(step_view)
        self.steps_per_position = -math.prod(step_view)
        self.init_factor = init_factor or (4.0 if signed is False else 2.0)
        self.shift_view = shift_view
        self.per_token = num_steps is None
        self.per_pixel = shift_view == ()
        self.name = ''
        self.columns: int | None = None
        self.num_tokens: int | None = None
        self.grid: tuple[int, int] | None = None
        self.sizing = False
        self.register_parameter('step', None)
        self.register_parameter('shift_before', None)
        self.register_parameter('shift_after', None)
        if num_steps is not None:
            self.step = nn.Parameter(torch.ones(num_steps))
        if shift_view:
            self._add_shifts(math.prod(shift_view))
        self.register_buffer('initialized', torch.tensor(False))
        self.register_buffer('signed', torch.tensor(False) if signed is None else None)
        # Copies of the buffers that can be asked without waiting for the device
        self._is_initialized = False
        self._is_signed = bool(signed)

    def _add_shifts(self, number: int, device: torch.device | None = None) -> None:
        self.shift_before = nn.Parameter(torch.zeros(number, device=device))
        self.shift_after = nn.Parameter(torch.zeros(number, device=device))

    @property
    def bounds(self) -> tuple[int, int]:
        """Lowest and highest code."""
        return lsq_bounds(self.bits, self._is_signed)

    @property
    def is_initialized(self) -> bool:
        """Whether the steps come from data or a checkpoint."""
        return self._is_initialized

    def forward(self, x: Tensor) -> Tensor:
        """Quantized input, float32, of the same shape."""
        if self.sizing:
            self._size(x)
            return x
        out = self.arrange(x)
        if not self._is_initialized:
            self.calibrate(out)
        out = lsq(out, self.broadcast_step(), *self.bounds, *self.shifts())
        return out if self.columns is None else out.flatten(-3, -2)

    def arrange(self, x: Tensor) -> Tensor:
        """The input in the shape that steps and shifts broadcast against.

        Raises:
            ValueError: If it has another number of tokens or pixels than steps and shifts are for.
        """
        if self.step is None:
            raise RuntimeError('This quantizer has no steps yet: size_quantizers() adds them')
        steps = self.step.numel() // self.steps_per_position
        if self.columns is not None:
            if x.shape[-2] != self.num_tokens:
                self._refuse(f'{self.num_tokens} tokens', x.shape[-2], x)
            return x.unflatten(-2, (-1, self.columns))
        if steps not in (1, x.shape[self.axis]):
            self._refuse(f'{steps} tokens', x.shape[self.axis], x)
        if self.per_pixel and self.shift_view is not None and x.shape[-2:] != self.shift_view:
            sizes = ['x'.join(map(str, size)) for size in (self.shift_view, x.shape[-2:])]
            self._refuse(f'{sizes[0]} pixels', sizes[1], x)
        return x

    def _refuse(self, expected: str, found: int | str, x: Tensor) -> NoReturn:
        name = f'quantizer {self.name!r}' if self.name else 'a quantizer'
        raise ValueError(
            f"quant_cfg.act_granularity='token': {name} was built for {expected} and got {found} "
            f'(input {tuple(x.shape)}). Build the model with the img_size of its inputs, or set '
            "quant_cfg.act_granularity='tensor'"
        )

    def broadcast_step(self) -> Tensor:
        """The steps in the shape that broadcasts against the input."""
        return self.step.view(self.step_view)

    def shifts(self) -> tuple[Tensor | None, Tensor | None]:
        """Shifts before and after, in the shape that broadcasts against the input."""
        if self.shift_before is None:
            return None, None
        return self.shift_before.view(self.shift_view), self.shift_after.view(self.shift_view)

    def position(self, weight: Tensor) -> Tensor:
        """Where weights lie between the codes, as :meth:`StatsQuantizer.position`."""
        position = weight.detach() / self.broadcast_step().detach().clamp(min=MIN_STEP)
        return position.clamp_(*self.bounds)

    def integers(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """As :meth:`StatsQuantizer.integers`, of a weight with one step a row."""
        step = self.broadcast_step().detach()
        codes = lsq_codes(x.detach(), step, *self.bounds)
        return codes.to(torch.int8), self.step.detach().clamp(min=MIN_STEP), 0.0

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the steps, and the sign if it is open, by a batch."""
        before, _ = self.shifts()
        x = x if before is None else x + before
        if self.signed is not None:
            lowest = x.min()
            dist.broadcast(lowest)
            # One negative batch is enough
            self._is_signed |= bool(lowest < -1e-5)
            self.signed.fill_(self._is_signed)
        step = lsq_initial_step(x, self.broadcast_step().shape, self.bounds[1], self.init_factor)
        self.step.copy_(step.flatten())
        # The first process decides; each layer sees inputs that its steps quantized.
        dist.broadcast(self.step.data)
        self.initialized.fill_(True)
        self._is_initialized = True

    def reset(self) -> None:
        """Leave the steps to the next batch; a sign that was found stays."""
        self.initialized.fill_(False)
        self._is_initialized = False

    def _size(self, x: Tensor) -> None:
        if self.columns is not None:
            self.num_tokens = x.shape[-2]
        if self.step is None:
            positions = x.shape[self.axis] if self.columns is None else self.columns
            number = positions * self.steps_per_position
            self.step = nn.Parameter(torch.ones(number, device=x.device))
        if self.shift_view == ():
            self.shift_view = tuple(x.shape[-2:])
            self._add_shifts(math.prod(self.shift_view), x.device)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        if not any(prefix + name in state_dict for name in own):
            state_dict = {prefix + name: value for name, value in own.items()}
            state_dict[prefix + 'initialized'] = torch.tensor(False)
        else:
            state_dict = {**state_dict, **self._resized(state_dict, prefix)}
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._is_initialized = bool(self.initialized)
        if self.signed is not None:
            self._is_signed = bool(self.signed)

    def _resized(self, state_dict: dict, prefix: str) -> dict[str, Tensor]:
        """Steps a token and shifts a pixel, resized from the grid that they belong to."""
        resized = {}
        step = state_dict.get(prefix + 'step')
        if step is None or step.shape == self.step.shape:
            pass
        elif self.columns is not None:
            line = step.view(1, -1, self.steps_per_position).transpose(1, 2)
            line = F.interpolate(line, self.columns, mode='linear')
            resized[prefix + 'step'] = line.transpose(1, 2).flatten()
        elif self.grid is not None:
            table = step.view(1, -1, self.steps_per_position)
            extra = self.step.numel() // self.steps_per_position - math.prod(self.grid)
            table = resize_pos_embed(table, self.grid, num_extra_tokens=extra)
            resized[prefix + 'step'] = table.flatten()
        for name in ('shift_before', 'shift_after'):
            own, shift = getattr(self, name), state_dict.get(prefix + name)
            if shift is not None and own is not None and shift.shape != own.shape:
                size = cast(tuple[int, int], self.shift_view)
                image = resize_pos_embed(shift[None, :, None], size, num_extra_tokens=0)
                resized[prefix + name] = image.flatten()
        return resized

    def extra_repr(self) -> str:
        number = None if self.step is None else self.step.numel()
        return f'bits={self.bits}, steps={number}, signed={self._is_signed}'


def quantizers_of(model: nn.Module) -> list[LSQQuantizer]:
    """Every :class:`LSQQuantizer` of a model, in the order of definition."""
    return [module for module in model.modules() if isinstance(module, LSQQuantizer)]


@contextmanager
def _sizing(quantizers: Iterable[LSQQuantizer]) -> Iterator[None]:
    for quantizer in quantizers:
        quantizer.sizing = True
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.sizing = False


@torch.no_grad()
def size_quantizers(model: nn.Module, run: Callable[[], object]) -> None:
    """Give quantizers as many steps as there are tokens in one forward pass.

    Args:
        model (nn.Module): The model, whose quantizers let everything pass meanwhile.
        run (Callable): Runs the model.
    """
    training = model.training
    model.eval()
    try:
        with _sizing(quantizers_of(model)):
            run()
    finally:
        model.train(training)
