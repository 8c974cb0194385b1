"""OpenVINO models from ONNX files, checked against PyTorch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .onnx import DeployModel, OnnxExportError, largest_difference

try:
    import openvino
except ImportError as error:
    raise ImportError('OpenVINO needs one more package: pip install "vitdown[openvino]"') from error


class OpenvinoExportError(OnnxExportError):
    """A file that OpenVINO can't read, or computes something else from than the model."""


def export_openvino(
    model: DeployModel,
    onnx_path: str | os.PathLike,
    path: str | os.PathLike,
    size: tuple[int, int],
    tolerance: float = 1e-3,
) -> float:
    """Write an OpenVINO model of an ONNX file, once it gives what the PyTorch model gives.

    Weights are kept in float32. Names and shapes of inputs and outputs are those of the ONNX file.

    Args:
        model (DeployModel): The model that the ONNX file was made of, on the CPU.
        onnx_path (str): File of :func:`export_onnx`.
        path (str): ``.xml`` file; the weights go into a ``.bin`` file beside it.
        size (tuple[int, int]): Height and width of the images.
        tolerance (float): Largest difference allowed, as a share of the largest output.

    Returns:
        float: The largest difference found, for batches of one, two and five images.

    Raises:
        OpenvinoExportError: If the difference is larger, or OpenVINO lacks an operator.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / path.name
        try:
            openvino.save_model(
                openvino.Core().read_model(onnx_path), draft, compress_to_fp16=False
            )
            compiled = openvino_model(draft, threads=1)
        except RuntimeError as error:
            cause = str(error).strip().splitlines()[-1]
            raise OpenvinoExportError(f'OpenVINO can not convert {onnx_path}: {cause}') from error
        difference = largest_difference(model, lambda inputs: compiled(inputs)[0], size)
        if not difference <= tolerance:
            raise OpenvinoExportError(
                f'the OpenVINO model differs from the model by {difference:.1e} of the largest '
                f'output, more than {tolerance:.1e}: this model can not be converted faithfully'
            )
        for file in (draft.with_suffix('.bin'), draft):
            os.replace(file, path.with_name(file.name))
    return difference


def openvino_model(path: str | os.PathLike, threads: int = 0) -> openvino.CompiledModel:
    """A model, ready to run on the CPU in float32: ``model(images)[0]``.

    Args:
        path (str): The ``.xml`` or ``.onnx`` file.
        threads (int): 0 for one a core.
    """
    options = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': threads}
    return openvino.Core().compile_model(path, 'CPU', options)
