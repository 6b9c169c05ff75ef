"""`model.onnx`: a network in ONNX, read without onnxruntime and without running code of the file."""

from anytimeify.capture.sources.onnx.load import KIND as KIND

__all__ = ["KIND"]
