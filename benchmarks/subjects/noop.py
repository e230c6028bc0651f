"""Networks that compute next to nothing, and bundles of them of any size, to measure the server's own time.

The ONNX files are written byte by byte, as Protocol Buffers lay them out, so that the serving machine needs no onnx
package. Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sensai_serve import load
from sensai_serve.assignment import Assignment, cyclic, grouped, search_offsets
from sensai_serve.bundles import GOLDEN, MANIFEST, REFERENCE, Bundle
from sensai_serve.manifest import Manifest, SubnetSpec
from sensai_serve.preprocess import InputSpec
from sensai_serve.protobuf import bytes_field, number_field

_FLOAT, _INT64 = 1, 7
_OPSET, _IR_VERSION = 17, 8
_GOLDEN_SAMPLES = 2


def noop_network(
    shape: Sequence[int], n_outputs: int, *, seed: int = 0, columns: Sequence[int] | None = None, width: int = 0
) -> bytes:
    """An ONNX file from ``input`` FP32 [N, *shape] to ``scores`` FP32 [N, n_outputs] that looks at one number.

    Slice, Flatten, Gemm, Sigmoid: its time does not depend on the input's size.

    Args:
        shape: shape of one input.
        n_outputs: number of scores.
        seed: seed of the weights.
        columns: the scores to keep, in their order; all where not given.
        width: neurons of each of two hidden layers, for a network with weights: 4 x `width` ** 2 bytes of them.
    """
    random = np.random.default_rng(seed)
    constants: dict[str, npt.NDArray[np.generic]] = {
        "starts": np.zeros(len(shape), np.int64),
        "ends": np.ones(len(shape), np.int64),
        "axes": np.arange(1, len(shape) + 1, dtype=np.int64),
        "weight": random.normal(size=(width or 1, n_outputs)).astype(np.float32),
        "bias": random.normal(size=n_outputs).astype(np.float32),
    }
    if columns is not None:
        n_outputs = len(columns)
        kept = list(columns)
        constants |= {"weight": constants["weight"][:, kept], "bias": constants["bias"][kept]}
    hidden: tuple[tuple[str, tuple[str, ...], str], ...] = ()
    if width:
        constants["first"] = random.normal(size=(1, width)).astype(np.float32)
        constants["second"] = (random.normal(size=(width, width)) / width).astype(np.float32)
        hidden = ("Gemm", ("flat", "first"), "wide"), ("Gemm", ("wide", "second"), "last")
    nodes = (
        ("Slice", ("input", "starts", "ends", "axes"), "one"),
        ("Flatten", ("one",), "flat"),
        *hidden,
        ("Gemm", ("last" if width else "flat", "weight", "bias"), "logits"),
        ("Sigmoid", ("logits",), "scores"),
    )
    graph = b"".join(
        (
            *(bytes_field(1, _node(*node)) for node in nodes),
            bytes_field(2, b"noop"),
            *(bytes_field(5, _tensor(name, value)) for name, value in constants.items()),
            bytes_field(11, _value("input", shape)),
            bytes_field(12, _value("scores", (n_outputs,))),
        )
    )
    return number_field(1, _IR_VERSION) + bytes_field(7, graph) + bytes_field(8, number_field(2, _OPSET))


def noop_bundle(
    folder: Path,
    *,
    n_workers: int = 10,
    n_classes: int = 10,
    shape: Sequence[int] = (3, 32, 32),
    name: str = "noop",
    redundancy: int = 1,
    width: int = 0,
) -> Bundle:
    """A bundle of no-op subnets: the classes in as many equal groups as there are workers, and a no-op reference.

    Args:
        folder: a new directory.
        n_workers: number of workers, at most `n_classes`.
        n_classes: number of classes.
        shape: shape of one input.
        name: the model's name.
        redundancy: the copies of each class; all give the same scores.
        width: of the subnets' hidden layers; see `noop_network`.
    """
    groups = [part.tolist() for part in np.array_split(np.arange(n_classes), n_workers)]
    copied = redundancy > 1
    assignment: Assignment = (
        cyclic(groups, search_offsets(n_workers, redundancy).offsets) if copied else grouped(groups)
    )
    (folder / "subnets").mkdir(parents=True)
    subnets = []
    for worker, classes in enumerate(assignment.rows):
        file = f"subnets/{worker:02}.onnx"
        network = (
            noop_network(shape, n_classes, columns=classes, width=width) if copied
            else noop_network(shape, len(classes), seed=worker, width=width)
        )  # fmt: skip
        digest = _write(folder / file, network)
        subnets.append(SubnetSpec(worker, file, digest, classes))
    checksums = {REFERENCE: _write(folder / REFERENCE, noop_network(shape, n_classes, seed=n_workers))}
    manifest = Manifest(
        name=name,
        labels=tuple(f"class-{c}" for c in range(n_classes)),
        inputs=(InputSpec(shape=tuple(shape)),),
        subnets=tuple(subnets),
        kind=assignment.kind,
        symbols=assignment.symbols,
        offsets=assignment.offsets,
        reference=REFERENCE,
        checksums=checksums,
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    inputs = np.random.default_rng(0).normal(size=(_GOLDEN_SAMPLES, *shape)).astype(np.float32)
    answer = load(folder).predict_tensor(inputs)
    np.savez(folder / GOLDEN, inputs=inputs, scores=answer.scores, class_id=answer.class_id)
    return Bundle.open(folder)


def _write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _node(operator: str, inputs: Sequence[str], output: str) -> bytes:
    return b"".join((*(bytes_field(1, name.encode()) for name in inputs), bytes_field(2, output.encode()),
                     bytes_field(4, operator.encode())))  # fmt: skip


def _tensor(name: str, value: npt.NDArray[np.generic]) -> bytes:
    kind = _FLOAT if value.dtype == np.float32 else _INT64
    dimensions = b"".join(number_field(1, size) for size in value.shape)
    return dimensions + number_field(2, kind) + bytes_field(8, name.encode()) + bytes_field(9, value.tobytes())


def _value(name: str, shape: Sequence[int]) -> bytes:
    dimensions = [bytes_field(2, b"N"), *(number_field(1, size) for size in shape)]
    tensor = number_field(1, _FLOAT) + bytes_field(2, b"".join(bytes_field(1, dimension) for dimension in dimensions))
    return bytes_field(1, name.encode()) + bytes_field(2, bytes_field(1, tensor))
