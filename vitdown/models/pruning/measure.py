"""Measuring how long blocks take on the machine at hand."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from mmengine.utils import track_iter_progress
from torch import Tensor, nn

from ..layers import TransformerEncoderLayer
from .latency import AXES, LatencyTable
from .structures import Sizes


def device_name(device: torch.device | str) -> str:
    """Name of a GPU, or of the CPU with the number of threads in use."""
    device = torch.device(device)
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.is_file():
        models = [line for line in info.read_text().splitlines() if line.startswith('model name')]
        name = models[0].partition(':')[2].strip() if models else name
    return f'{name}, {torch.get_num_threads()} threads'


def grid_axes(sizes: Sizes, points: int = 4, mlp_points: int = 6) -> dict[str, list[int]]:
    """Sizes to measure for a model: from its own down to one unit, evenly.

    Args:
        sizes (Sizes): Sizes of the model before pruning.
        points (int): Sizes of each axis but the MLP's.
        mlp_points (int): Sizes of the MLP.

    Raises:
        ValueError: If an axis would have a single point, between which nothing can be interpolated.
    """
    if points < 2 or mlp_points < 2:
        raise ValueError(
            f'A latency table needs at least 2 points an axis, got points={points} and '
            f'mlp_points={mlp_points}'
        )
    heads, qk, v, mlp = (max(column) for column in zip(*sizes.blocks))

    def spread(largest: int, number: int, smallest: int = 1) -> list[int]:
        return sorted({round(x) for x in np.linspace(smallest, largest, min(number, largest))})

    return dict(
        emb=spread(sizes.emb, points, max(1, sizes.emb // 4)),
        heads=spread(heads, points),
        qk=spread(qk, points),
        v=spread(v, points),
        mlp=spread(mlp, mlp_points),
    )


def time_module(
    run: Callable[[], object],
    device: torch.device,
    repeats: int = 30,
    warmup: int = 5,
    cpu_time: bool = False,
) -> tuple[float, float]:
    """Median seconds of a call, and their spread: the quartiles' distance over the median.

    With ``cpu_time``, seconds that a CPU worked, whatever else it did in between.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    for _ in range(warmup):
        run()
    seconds = []
    if device.type == 'cuda':
        with torch.cuda.device(device):  # whose stream the events are recorded on
            for _ in range(repeats):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run()
                end.record()
                torch.cuda.synchronize(device)
                seconds.append(start.elapsed_time(end) / 1e3)
    else:
        for _ in range(repeats):
            begin = clock()
            run()
            seconds.append(clock() - begin)
    lower, median, upper = statistics.quantiles(seconds, n=4)
    return median, (upper - lower) / median


@torch.inference_mode()
def measure_latency(
    axes: dict[str, Sequence[int]],
    num_tokens: int,
    batch_size: int,
    device: torch.device | str = 'cpu',
    dtype: torch.dtype = torch.float32,
    separable: bool = True,
    repeats: int = 10,
    warmup: int = 5,
    compile: bool = False,
    cpu_time: bool = False,
    passes: int = 3,
) -> LatencyTable:
    """Measure the time of one block at every point of a grid.

    Args:
        axes (dict): Ascending sizes of ``'emb'``, ``'heads'``, ``'qk'``, ``'v'``, ``'mlp'``.
        num_tokens (int): Tokens of an image.
        batch_size (int): Images.
        device (str): Where to measure.
        dtype (torch.dtype): Of weights and tokens.
        separable (bool): Measure the attention half and the MLP half by themselves and add them:
            many times fewer points. Otherwise whole blocks.
        repeats (int): Runs at each point in each pass, of which the median counts.
        warmup (int): Runs before.
        compile (bool): Measure under ``torch.compile``.
        cpu_time (bool): Count the time that the CPU worked: what one thread takes on a machine of
            its own, measured on one that others use.
        passes (int): Times to go through the grid. The fastest counts: other work, or a state of
            the memory allocator, slows whole stretches of a pass.

    Returns:
        LatencyTable: Its ``info`` names device, versions and settings, the ``spread`` of the
        repeats, which nine of ten points stay below, and the share of ``negative_slopes``.

    Raises:
        ValueError: If there is nothing to measure.
    """
    if batch_size < 1 or repeats < 2 or passes < 1:
        raise ValueError(
            'Measuring needs a batch_size of at least 1, at least 2 repeats, to tell how far they '
            f'differ, and at least 1 pass; got {batch_size}, {repeats} and {passes}'
        )
    device = torch.device(device)
    if device.type == 'cuda':
        torch.backends.cudnn.benchmark = True
    spreads: list[float] = []

    def measure(part: str, emb: int, heads: int, qk: int, v: int, mlp: int) -> float:
        block = TransformerEncoderLayer(emb, heads, mlp, qk_dims=qk, v_dims=v)
        module: nn.Module = {'block': block, 'attention': _Attention(block), 'mlp': _MLP(block)}[
            part
        ]
        module = module.eval().to(device=device, dtype=dtype)
        x = torch.randn(batch_size, num_tokens, emb, device=device, dtype=dtype)
        forward: Callable[[Tensor], Tensor] = module
        if compile:
            torch._dynamo.reset()  # at its limit of recompilations it would run the rest eagerly
            forward = torch.compile(module)
        median, spread = time_module(lambda: forward(x), device, repeats, warmup, cpu_time)
        spreads.append(spread)
        return median

    def measure_all(part: str, sizes: Sequence[Sequence[int]]) -> np.ndarray:
        points = list(product(*sizes))
        times = np.zeros((passes, len(points)))
        for index in track_iter_progress(list(np.ndindex(times.shape))):
            times[index] = measure(part, *points[index[1]])
        return times.min(axis=0).reshape([len(axis) for axis in sizes])

    every = [axes[name] for name in AXES]
    if separable:
        emb, *heads, mlp = every
        attention = measure_all('attention', [emb, *heads, [1]])
        feedforward = measure_all('mlp', [emb, [1], [1], [1], mlp])
        values = attention + feedforward
    else:
        values = measure_all('block', every)
    table = LatencyTable(
        axes,
        values,
        info=dict(
            device=device_name(device),
            torch=torch.__version__,
            dtype=str(dtype).removeprefix('torch.'),
            batch_size=batch_size,
            num_tokens=num_tokens,
            separable=separable,
            compile=compile,
            cpu_time=cpu_time,
            repeats=repeats,
            passes=passes,
            spread=float(np.quantile(spreads, 0.9)),
        ),
    )
    table.info['negative_slopes'] = table.negative_slopes()
    return table


class _Attention(nn.Module):
    """The first half of a block."""

    def __init__(self, block: TransformerEncoderLayer) -> None:
        super().__init__()
        self.ln1, self.attn = block.ln1, block.attn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.ln1(x))[0]


class _MLP(nn.Module):
    """The second half of a block."""

    def __init__(self, block: TransformerEncoderLayer) -> None:
        super().__init__()
        self.ln2, self.ffn = block.ln2, block.ffn

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.ln2(x), identity=x)
