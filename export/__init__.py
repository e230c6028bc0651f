"""Exports a run directory to a bundle: ONNX files that agree with torch, evaluated as the server will run them."""
