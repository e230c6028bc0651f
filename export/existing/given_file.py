"""Reads ONNX files that somebody made elsewhere, and refuses by name those that cannot be served, with a way out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto
from onnx.inliner import inline_local_functions

from export.existing.graphs import keep_what_gives, nodes_of
from export.sessions import session
from sensai_serve.bundles import MAX_NETWORK_BYTES
from sensai_serve.errors import ModelError, first_line
from sensai_serve.onnx_signature import read_signature
from sensai_serve.tensors import Array

OLDEST_OPERATORS, NEWER_OPERATORS = 9, 13
"""Files of an older operator set than the first are converted to the second."""
FLOATS: Mapping[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
}
WHOLE: Mapping[int, Any] = {
    TensorProto.UINT8: np.uint8,
    TensorProto.INT8: np.int8,
    TensorProto.UINT16: np.uint16,
    TensorProto.INT16: np.int16,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
}
NUMBERS: Mapping[int, Any] = {**FLOATS, **WHOLE}
"""The numpy type of each element type that an input may have."""
_STANDARD = ("", "ai.onnx", "ai.onnx.ml")
_ZIP_MAP = "ZipMap"
Source = str | Path | bytes | onnx.ModelProto


@dataclass(frozen=True)
class GivenFile:
    """An ONNX file that was made elsewhere, whose operators ONNX Runtime has."""

    name: str
    """What messages call it."""
    model: onnx.ModelProto
    """As it was given, its weights inside."""
    plain: onnx.ModelProto
    """The same without functions and ZipMaps, and with no other outputs than `outputs`."""
    sha256: str
    """Of the file, or of the bytes that the model was given as."""
    inputs: tuple[ValueInfoProto, ...]
    outputs: tuple[str, ...]
    """The outputs that are tensors of floating-point numbers."""
    others: tuple[str, ...]
    """What the other outputs are, in words."""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the classes, for those outputs that have them (a ZipMap)."""

    @property
    def input(self) -> ValueInfoProto:
        """Its input; the first of several."""
        return self.inputs[0]

    @property
    def element_type(self) -> int:
        """ONNX's number of the type of its input."""
        return int(self.input.type.tensor_type.elem_type)

    @property
    def axes(self) -> tuple[int | None, ...]:
        """The sizes of its input's axes, the batch among them; None for any size."""
        return axes_of(self.input)

    def original(self) -> Original:
        """The file as it was given, to be run."""
        return Original(self)


def axes_of(value: ValueInfoProto) -> tuple[int | None, ...]:
    """The sizes of an input's axes, the batch among them; None for any size."""
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
                 for d in value.type.tensor_type.shape.dim)  # fmt: skip


class Original:
    """A file as it was given, run for one input after the other: what a made subnet has to agree with."""

    def __init__(self, given: GivenFile) -> None:
        self._given = given
        self._session = _open(given.model, given.name)

    def __call__(self, inputs: Array | Mapping[str, Array]) -> dict[str, Array]:
        """What each output gives for inputs [N, ...] of the file's own type and layout, FP32 [N, all of its numbers].

        Args:
            inputs: of the one input; or of each, by name.

        Raises:
            ModelError: the file does not run on them.
        """
        given, rows = self._given, list[dict[str, Array]]()
        named = inputs if isinstance(inputs, Mapping) else {given.input.name: inputs}
        for at in range(len(named[given.input.name])):
            feed = {name: array[at : at + 1] for name, array in named.items()}
            try:
                found = self._session.run(list(given.outputs), feed)
            except Exception as error:  # onnxruntime's exceptions share no base of its own
                shapes = " and ".join(str(list(array.shape[1:])) for array in named.values())
                raise ModelError(f"{given.name} does not run on an input of {shapes}: {first_line(error)}") from None
            rows.append(
                {name: _numbers(one, given.labels.get(name)) for name, one in zip(given.outputs, found, strict=True)}
            )
        same = [name for name in given.outputs if len({row[name].shape for row in rows}) == 1]
        return {name: np.concatenate([row[name] for row in rows]) for name in same}


def read(source: Source, name: str | None = None) -> GivenFile:
    """Read an ONNX file.

    Args:
        source: its path, its bytes, or the model itself. Weights in other files must lie beside the path.
        name: what messages call it; its path where None.

    Raises:
        ModelError: there is no such file, or it cannot be served.
    """
    name = name or (str(source) if isinstance(source, str | Path) else "model")
    model, sha256 = _load(source, name)
    graph = model.graph
    constants = {value.name for value in graph.initializer} | {value.values.name for value in graph.sparse_initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if not inputs:
        raise ModelError(f"{name} has no inputs, expected one at least")
    for value in inputs:
        _check_input(value, name)
    _open(model, name)
    plain = _make_plain(model, name)
    labels, others, outputs = dict[str, tuple[str, ...]](), list[str](), list[str]()
    for value in plain.graph.output:
        kind = value.type.WhichOneof("value")
        if kind == "tensor_type" and value.type.tensor_type.elem_type in FLOATS:
            outputs.append(value.name)
        elif (classes := _take_out_zip_map(plain.graph, value.name)) is not None:
            outputs.append(value.name)
            labels[value.name] = classes
        else:
            others.append(f"{value.name} ({_described(value)})")
    if not outputs:
        raise ModelError(
            f"{name} gives {', '.join(others)}, expected floating-point scores of each class: convert it again with "
            "probabilities (or a decision function) among its outputs"
        )
    keep_what_gives(plain.graph, outputs)
    names = {value.name for value in inputs}
    kept = [value for value in plain.graph.input if value.name in names]
    del plain.graph.input[:]
    plain.graph.input.extend(kept)
    return GivenFile(name, model, plain, sha256, tuple(kept), tuple(outputs), tuple(others), labels)


def _load(source: Source, name: str) -> tuple[onnx.ModelProto, str]:
    """The model, all of its weights inside, and its SHA-256."""
    try:
        if isinstance(source, onnx.ModelProto):
            data = source.SerializeToString()
            model = onnx.load_model_from_string(data)
        elif isinstance(source, bytes):
            data, model = source, onnx.load_model_from_string(source)
        else:
            path = Path(source)
            if not path.is_file():
                there = "is a directory" if path.is_dir() else "is not there"
                raise ModelError(f"{name} {there}, expected an ONNX file")
            data, model = path.read_bytes(), onnx.load_model(path, load_external_data=False)
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"{name} cannot be read: {error.strerror}") from None
    except Exception:  # protobuf's errors share no base
        raise ModelError(f"{name} is not an ONNX model") from None
    if not model.graph.node or not model.graph.output:
        raise ModelError(f"{name} is not an ONNX model")
    _load_weights(source, data, model, name)
    if model.ByteSize() > MAX_NETWORK_BYTES:
        raise ModelError(
            f"{name} has more than {MAX_NETWORK_BYTES} bytes with its weights, which no ONNX file can hold"
        )
    return model, hashlib.sha256(data).hexdigest()


def _load_weights(source: Source, data: bytes, model: onnx.ModelProto, name: str) -> None:
    """Take weights that lie in other files into the model."""
    if not read_signature(data).external_data:
        return
    where = "expected all of them inside: onnx.save_model(onnx.load_model(PATH), NEW_PATH) makes such a file"
    if not isinstance(source, str | Path):
        raise ModelError(f"{name} keeps weights in another file, {where}")
    try:
        onnx.load_external_data_for_model(model, str(Path(source).parent))
    except Exception as error:  # a missing file, one outside the folder, one that is too short
        raise ModelError(
            f"{name} keeps weights in another file that cannot be taken in ({first_line(error)}), {where}"
        ) from None


def _check_input(value: ValueInfoProto, name: str) -> None:
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or tensor.elem_type not in (*NUMBERS, TensorProto.BOOL):
        raise ModelError(f"{name} takes {value.name}, {_described(value)}, expected a tensor of numbers")
    axes = [d.dim_value for d in tensor.shape.dim]
    if not tensor.HasField("shape") or len(axes) < 2:
        raise ModelError(
            f"{name} takes {value.name} of {'unknown shape' if not tensor.HasField('shape') else f'shape {axes}'}, "
            "expected a batch axis and at least one more: set the input's shape where the file is made"
        )
    if axes[0] > 1:
        raise ModelError(
            f"{name} takes batches of {axes[0]} only, expected any number or 1: export it with a free batch axis"
        )


def _make_plain(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy without functions, of an operator set that ours can be added to."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    if plain.functions:
        plain = inline_local_functions(plain)
    standard = [entry for entry in plain.opset_import if entry.domain in ("", "ai.onnx")]
    if not standard:  # operators of trees and the like alone
        plain.opset_import.append(onnx.helper.make_opsetid("", NEWER_OPERATORS))
    elif standard[0].version < OLDEST_OPERATORS:
        try:
            plain = onnx.version_converter.convert_version(plain, NEWER_OPERATORS)
        except Exception as error:  # the converter raises whatever it likes
            raise ModelError(
                f"{name} is of operator set {standard[0].version}, expected {OLDEST_OPERATORS} or newer, and cannot be "
                f"converted ({first_line(error)})"
            ) from None
    plain.ir_version = max(plain.ir_version, 4)  # from which on weights need not be inputs
    return plain


def _take_out_zip_map(graph: onnx.GraphProto, output: str) -> tuple[str, ...] | None:
    """Let an output that a ZipMap makes be the tensor that it is made of; its classes, None where it is no such."""
    node = next((node for node in graph.node if output in node.output), None)
    if node is None or node.op_type != _ZIP_MAP:
        return None
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    classes = values.get("classlabels_strings") or values.get("classlabels_int64s") or ()
    identity = onnx.helper.make_node("Identity", [node.input[0]], [output])
    node.CopyFrom(identity)
    (value,) = [value for value in graph.output if value.name == output]
    value.CopyFrom(onnx.helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, len(classes)]))
    return tuple(c.decode() if isinstance(c, bytes) else str(c) for c in classes)


def _open(model: onnx.ModelProto, name: str) -> Any:
    """A session of a model.

    Raises:
        ModelError: ONNX Runtime cannot run it.
    """
    try:
        return session(model.SerializeToString())
    except Exception as error:  # onnxruntime's exceptions share no base of its own
        strange = sorted({f"{n.domain}:{n.op_type}" for n in nodes_of(model.graph) if n.domain not in _STANDARD})
        uses = f" (it uses {', '.join(strange[:3])})" if strange else ""
        way = "export it with the standard operators" if strange else "export it anew, or for an older operator set"
        raise ModelError(f"{name} cannot be run by ONNX Runtime{uses}: {first_line(error)}; {way}") from None


def _numbers(output: Any, labels: tuple[str, ...] | None) -> Array:
    """One input's output, FP32 [1, all of its numbers]; those of a ZipMap in the order of its classes."""
    if isinstance(output, list) and labels is not None:
        by_label = {str(key): value for key, value in output[0].items()}
        output = np.asarray([by_label[label] for label in labels])
    return np.asarray(output, np.float32).reshape(1, -1)


def _described(value: ValueInfoProto) -> str:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return (kind or "nothing").removesuffix("_type").replace("_", " ")
    return f"a tensor of {TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()}"
