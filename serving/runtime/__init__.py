"""Runs one network: devices, ONNX Runtime sessions, bound memory, and faults on purpose."""
