"""A server around `anytimeify.runtime.Adaptive`: `python -m examples.server net.onnx`. See docs/server.md."""
