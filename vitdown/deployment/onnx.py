"""ONNX files of re-ID models and classifiers, checked against PyTorch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from mmengine.model import BaseModel
from mmpretrain.models.utils.attention import ShiftWindowMSA
from torch import Tensor, nn

from vitdown.engine.launch import ConfigError
from vitdown.models.quantization import quantizers_of

try:
    import onnxruntime
    import onnxscript  # noqa: F401  what torch.onnx.export needs
except ImportError as error:
    raise ImportError('ONNX needs more packages: pip install "vitdown[export]"') from error

_OPSET = 18


class OnnxExportError(ConfigError):
    """A model that ONNX can't hold, or a file that computes something else than the model."""


class DeployModel(nn.Module):
    """A model as one function from images to features or logits.

    Models with side information (SIE) take the cameras and views of the images, too.

    Args:
        model (BaseModel): A re-ID model or a classifier; put into evaluation mode.
        preprocess (bool): Take decoded images, ``(B, H, W, 3)`` uint8 RGB, instead of normalised
            ones, ``(B, 3, H, W)`` float32. Images have the model's input size either way: how they
            are resized is up to their source. Defaults to False.

    Raises:
        ValueError: If the model is of another kind, or images are to be normalised, but the model
            does not say how.
    """

    def __init__(self, model: BaseModel, preprocess: bool = False) -> None:
        super().__init__()
        if any(cls.__module__.startswith(('mmdet.', 'mmseg.')) for cls in type(model).__mro__):
            raise ValueError(
                f'{type(model).__name__} can not be exported: ONNX files are for re-ID models and '
                'classifiers; detectors and segmentors run in PyTorch'
            )
        self.model = model.eval()
        self.preprocess = preprocess
        side_information = getattr(model.backbone, 'sie', None)
        self.side_information = side_information.sizes if side_information is not None else {}
        if preprocess:
            preprocessor = model.data_preprocessor
            if not getattr(preprocessor, '_enable_normalize', False):
                raise ValueError(
                    "the model's data_preprocessor has no mean and std to normalise by"
                )
            # Pipelines work in BGR; to_rgb says that mean and std are in RGB.
            self.reverse = not preprocessor.to_rgb
            self.register_buffer('mean', preprocessor.mean.detach().clone(), persistent=False)
            self.register_buffer('std', preprocessor.std.detach().clone(), persistent=False)

    def forward(
        self, images: Tensor, camera_ids: Tensor | None = None, view_ids: Tensor | None = None
    ) -> Tensor:
        """Features ``(B, D)`` or logits ``(B, num_classes)``.

        Args:
            images (Tensor): See the class.
            camera_ids (Tensor, optional): ``(B,)`` int64, for models that embed cameras.
            view_ids (Tensor, optional): ``(B,)`` int64, for models that embed views.
        """
        if self.preprocess:
            images = images.permute(0, 3, 1, 2)
            images = images.flip(1) if self.reverse else images
            images = (images.float() - self.mean) / self.std
        if self.side_information:
            given = dict(camera_ids=camera_ids, view_ids=view_ids)
            needed = {name: given[name] for name in self.side_information}
            return self.model.head.predict(self.model.extract_feat(images, **needed))
        output = self.model(images, mode='tensor')
        return output[-1] if isinstance(output, (tuple, list)) else output

    def example(self, batch: int, size: tuple[int, int], seed: int = 0) -> dict[str, Tensor]:
        """Random inputs by name: images of a size ``(H, W)``, with cameras and views if needed."""
        generator = torch.Generator().manual_seed(seed)
        if self.preprocess:
            shape = batch, *size, 3
            images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        else:
            images = torch.randn(batch, 3, *size, generator=generator)
        ids = {
            name: torch.randint(number, (batch,), generator=generator)
            for name, number in self.side_information.items()
        }
        return dict(images=images, **ids)


@torch.no_grad()
def export_onnx(
    model: DeployModel,
    path: str | os.PathLike,
    size: tuple[int, int],
    tolerance: float = 1e-3,
) -> float:
    """Write an ONNX file with a batch of any size, once it gives what the model gives.

    Input ``images``, for models with side information ``camera_ids`` and ``view_ids`` ``(B,)``
    int64, too; output ``output``. The height and width are fixed. Weights of more than 2 GB are no
    problem of the models here.

    Args:
        model (DeployModel): On the CPU.
        path (str): The file; there is none after an error.
        size (tuple[int, int]): Height and width of the images.
        tolerance (float): Largest difference allowed, as a share of the largest output.

    Returns:
        float: The largest difference found, for batches of one, two and five images.

    Raises:
        OnnxExportError: If the difference is larger, the model is quantized, or it has steps that
            depend on values in a way that no graph can hold.
    """
    if quantizers_of(model):
        raise OnnxExportError(
            'the model is quantized: tools/deployment/export_quantized.py --onnx FILE writes it, '
            'with integer weights'
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / path.name
        _export(model, draft, size)
        session = onnx_session(draft, 1)
        difference = largest_difference(model, lambda inputs: session.run(None, inputs)[0], size)
        if not difference <= tolerance:
            raise OnnxExportError(
                f'the ONNX file differs from the model by {difference:.1e} of the largest output, '
                f'more than {tolerance:.1e}: this model can not be exported faithfully'
            )
        os.replace(draft, path)
    return difference


def _export(model: DeployModel, path: Path, size: tuple[int, int]) -> None:
    inputs = model.example(2, size)
    batch = torch.export.Dim('batch', min=1)
    try:
        with patch.object(ShiftWindowMSA, 'window_reverse', staticmethod(_window_reverse)):
            program = torch.export.export(
                model,
                (),
                inputs,
                dynamic_shapes={name: {0: batch} for name in inputs},
            )
        program = program.run_decompositions(
            {torch.ops.aten.adaptive_max_pool2d.default: _adaptive_max_pool2d}
        )
        torch.onnx.export(
            program,
            (),
            path,
            input_names=list(inputs),
            output_names=['output'],
            opset_version=_OPSET,
            external_data=False,
            verbose=False,
        )
    # Models meet the limits of graphs with exceptions of many types.
    except Exception as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise OnnxExportError(
            f'{type(model.model.backbone).__name__} with {type(model.model.head).__name__} can not '
            f'be written as ONNX: {cause}'
        ) from error


def _window_reverse(windows: Tensor, height: int, width: int, window_size: int) -> Tensor:
    """mmpretrain's, which computes the batch size in floating point and so fixes it."""
    rows, columns = height // window_size, width // window_size
    x = windows.view(-1, rows, columns, window_size, window_size, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


def _adaptive_max_pool2d(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Adaptive pooling, which ONNX lacks, as maxima of slices; the indices are used by nobody."""
    for dim, bins in zip((-2, -1), output_size):
        length = x.shape[dim]
        ends = [(i * length // bins, -(-(i + 1) * length // bins)) for i in range(bins)]
        parts = [x.narrow(dim, low, high - low).amax(dim, keepdim=True) for low, high in ends]
        x = torch.cat(parts, dim)
    return x, torch.zeros_like(x, dtype=torch.long)


def onnx_session(path: str | os.PathLike, threads: int = 0) -> onnxruntime.InferenceSession:
    """A file, ready to run on the CPU.

    Args:
        path (str): The file.
        threads (int): 0 for one a core.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(os.fspath(path), options, ['CPUExecutionProvider'])


@torch.no_grad()
def largest_difference(
    model: DeployModel,
    run: Callable[[dict[str, np.ndarray]], np.ndarray],
    size: tuple[int, int],
) -> float:
    """Largest difference between a model and its copy in another runtime.

    Args:
        model (DeployModel): On the CPU.
        run (Callable): The copy, from inputs by name to outputs.
        size (tuple[int, int]): Height and width of the images.

    Returns:
        float: As a share of the largest output, for batches of one, two and five images; infinity
        if shapes differ.
    """
    differences = []
    for batch in (1, 2, 5):
        inputs = model.example(batch, size, seed=batch)
        expected = model(**inputs).numpy()
        found = run({name: value.numpy() for name, value in inputs.items()})
        if found.shape != expected.shape:
            return float('inf')
        differences.append(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))
    return float(max(differences))
