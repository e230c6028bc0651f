"""Bundles of ONNX files that somebody has already: ensembles, replicas, one-against-rest classifiers. No torch."""
