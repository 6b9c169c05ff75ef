"""ONNX files as sources: what was tried, and the page that says so."""
