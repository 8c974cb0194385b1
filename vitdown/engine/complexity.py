from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitdown.models.quantization import quantizers_of


@dataclass
class Complexity:
    """Cost of one forward pass.

    Attributes:
        macs (int): Multiply-adds of convolutions and matrix products, attention included; what
            papers on Vision Transformers usually call FLOPs.
        params (int): Number of parameters of the model.
        by_module (dict[str, int]): Multiply-adds by module name; a module's count includes its
            children's.
        by_layer (dict[str, int]): Those that a module makes itself, by its name in the model.
    """

    macs: int
    params: int
    by_module: dict[str, int]
    by_layer: dict[str, int]


def _is_detector(model: nn.Module) -> bool:
    return any(cls.__module__.startswith('mmdet.') for cls in type(model).__mro__)


def input_size(model: nn.Module) -> tuple[int, int] | None:
    """Height and width that a model's cost is usually stated for; None if unknown.

    800 x 1280 for MMDetection's detectors, what images are padded to for training for
    MMSegmentation's segmentors, else the backbone's ``img_size``.
    """
    if _is_detector(model):
        return 800, 1280
    padded = getattr(getattr(model, 'data_preprocessor', None), 'size', None)
    return padded or getattr(model.backbone, 'img_size', None)


def forward_of(model: nn.Module) -> Callable[[Tensor], object]:
    """The forward pass as a function of images, with the data samples that the model wants.

    MMDetection's detectors want sizes, models with side information the first camera and view.
    """
    if getattr(model.backbone, 'sie', None) is not None:
        sample = DataSample(camera_id=0, view_id=0)
        return lambda images: model(images, [sample] * len(images), mode='tensor')
    if not _is_detector(model):
        return model
    from mmdet.structures import DetDataSample

    def forward(images: Tensor) -> object:
        size = tuple(images.shape[2:])
        shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
        samples = [DetDataSample(metainfo={**shapes, 'scale_factor': (1, 1)}) for _ in images]
        return model(images, samples, mode='tensor')

    return forward


@contextmanager
def _own_flops(model: nn.Module, counter: FlopCounterMode) -> Iterator[Counter]:
    """Operations of each module of a model without those of the modules that it calls."""
    own: Counter[str] = Counter()
    stack, seen = [''], 0

    def account() -> None:
        nonlocal seen
        total = counter.get_total_flops()
        own[stack[-1]] += total - seen
        seen = total

    def enter(name: str, *_: object) -> None:
        account()
        stack.append(name)

    def leave(*_: object) -> None:
        account()
        stack.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(enter, name)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield own
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def get_flops(
    model: nn.Module,
    input_shape: tuple[int, ...],
    forward: Callable[[Tensor], object] | None = None,
) -> Complexity:
    """Count the multiply-adds of one forward pass.

    Args:
        model (nn.Module): The model; run in evaluation mode on its own device.
        input_shape (tuple[int, ...]): ``(C, H, W)`` of one image, or ``(B, C, H, W)``.
        forward (Callable, optional): What to run on the input instead of the model.

    Returns:
        Complexity: Multiply-adds and parameters. Element-wise operations are not counted, nor what
        quantized weights are made with, which is done once.
    """
    parameter = next(model.parameters())
    shape = input_shape if len(input_shape) == 4 else (1, *input_shape)
    inputs = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
    training = model.training
    model.eval()
    try:
        if quantizers_of(model):
            # Weights are quantized now and kept
            (forward or model)(inputs)
        # Fused attention kernels are opaque to the counter on some devices.
        counter = FlopCounterMode(display=False, depth=None)
        with sdpa_kernel(SDPBackend.MATH), counter, _own_flops(model, counter) as own:
            (forward or model)(inputs)
    finally:
        model.train(training)
    by_module = {
        name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items()
    }
    return Complexity(
        macs=counter.get_total_flops() // 2,
        params=sum(p.numel() for p in model.parameters()),
        by_module=by_module,
        by_layer={name: flops // 2 for name, flops in own.items() if flops},
    )
