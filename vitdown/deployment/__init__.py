"""Models in the formats of other runtimes."""

from .onnx import DeployModel, OnnxExportError, export_onnx, onnx_session

__all__ = ['DeployModel', 'OnnxExportError', 'export_onnx', 'onnx_session']
