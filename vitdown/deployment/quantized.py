"""ONNX files of quantized models: integer weights, quantized activations spelled out."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitdown.models.quantization.portable import (
    matmul_integer,
    portable_copy,
    portable_integer_copy,
)

try:
    import onnxruntime
    from onnxscript import opset18 as op
except ImportError as error:
    raise ImportError('ONNX needs more packages: pip install "vitdown[export]"') from error

FLAVOURS = {'qdq': portable_copy, 'integer': portable_integer_copy}


class _Tensors(nn.Module):
    """A model of MMEngine as a function from images to its last output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.takes_mode = hasattr(model, 'data_preprocessor')

    def forward(self, images: Tensor) -> Tensor:
        out = self.model(images, mode='tensor') if self.takes_mode else self.model(images)
        out = out[-1] if isinstance(out, (tuple, list)) else out
        # Class and distillation token side by side
        return torch.cat(out, dim=-1) if isinstance(out, (tuple, list)) else out


def quantized_session(path: str | os.PathLike, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session that computes what the file says.

    By default onnxruntime fuses a dequantized weight and its product into one operator that rounds
    the activations once more, to int8; their accuracy is set to float32 here.

    Args:
        path (str): ONNX file of :func:`export_quantized_onnx`.
        threads (int): 0 for one a core.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry('session.qdq_matmulnbits_accuracy_level', '1')
    return onnxruntime.InferenceSession(os.fspath(path), options, ['CPUExecutionProvider'])


def _matmul_integer(codes: Any, integers: Any, zero_point: int) -> Any:
    """:func:`matmul_integer` in ONNX."""
    return op.MatMulInteger(codes, integers, op.Cast(op.Constant(value_int=zero_point), to=2))


@torch.no_grad()
def export_quantized_onnx(
    model: nn.Module,
    path: str | os.PathLike,
    size: tuple[int, int],
    tolerance: float = 1e-3,
    batch: int | None = None,
    flavour: str = 'qdq',
) -> float:
    """Write an ONNX file with int8 weights.

    Activations are divided by their steps, clipped to their bits and rounded. Input ``images``,
    output ``output``; weights of all widths take a byte each.

    Args:
        model (nn.Module): Quantized classifier, re-ID model or backbone, with all steps set.
        path (str): The file; there is none after an error.
        size (tuple[int, int]): Height and width of the images.
        tolerance (float): Largest difference allowed between onnxruntime and PyTorch, as a share
            of the outputs' standard deviation. Defaults to 1e-3.
        batch (int, optional): Number of images at a time; None for any. Swin's windows need it.
        flavour (str): ``'qdq'``: weights (``DequantizeLinear``) and activations are multiplied in
            float32. ``'integer'``: their codes are (``MatMulInteger``), for what the int8 runtime
            computes in integers. Defaults to ``'qdq'``.

    Returns:
        float: The difference found.

    Raises:
        ValueError: If the flavour is unknown, the steps are not set, the settings don't allow
            integer products, or the file differs from the model.
    """
    if flavour not in FLAVOURS:
        raise ValueError(f'flavour must be one of {tuple(FLAVOURS)}, got {flavour!r}')
    path = Path(path)
    function = _Tensors(FLAVOURS[flavour](model)).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch or 3, 3, *size, generator=generator)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / path.name
        torch.onnx.export(
            function,
            (images if batch else images[:2],),
            draft,
            input_names=['images'],
            output_names=['output'],
            dynamic_shapes=None if batch else {'images': {0: torch.export.Dim('batch', min=1)}},
            opset_version=18,
            dynamo=True,
            custom_translation_table={matmul_integer._opoverload: _matmul_integer},
            external_data=False,
            verbose=False,
        )
        expected = _Tensors(model).eval()(images).numpy()
        (found,) = quantized_session(draft).run(None, {'images': images.numpy()})
        difference = float(np.abs(found - expected).max() / expected.std())
        if not difference <= tolerance:
            raise ValueError(
                f'The ONNX file differs from the model by {difference:.1e} of the standard '
                f'deviation of its outputs, more than {tolerance:.1e}, and was not written'
                + ('' if batch else '; perhaps the model needs a fixed batch, e.g. batch=1')
            )
        os.replace(draft, path)
    return difference
