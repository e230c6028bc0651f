"""Writes ONNX models as files that hold nothing but the network, whatever tool made them."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx

IR_VERSION = 10
"""Version of the ONNX file format; ONNX Runtime reads it from 1.18 on."""


def finish(proto: onnx.ModelProto) -> bytes:
    """Serialise a model without what tools note about its source: paths of files, lines of code, modules."""
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    proto.doc_string = proto.graph.doc_string = ""
    proto.producer_name, proto.producer_version = "sensai-serve", ""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
    for node in graph.node:
        node.doc_string = ""
    del graph.value_info[:]
    data: bytes = proto.SerializeToString()
    return data


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporters print, warn and log about their own insides while the block runs."""
    before, handlers = logging.root.manager.disable, list(logging.root.handlers)
    noise = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)
            logging.root.handlers[:] = handlers  # logging.info() and the like bring a handler where there is none
