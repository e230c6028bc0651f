"""Fixtures for all tests: `make_bundle` writes a small, real, valid bundle of any shape."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sensai_serve.assignment import Assignment, cyclic
from sensai_serve.bundle import GOLDEN, MANIFEST, REFERENCE
from sensai_serve.manifest import Manifest, MergeSpec, SubnetSpec
from sensai_serve.preprocess import ImageSpec, InputSpec, Normalisation

Head = Literal["sigmoid", "softmax_others"]
MakeBundle = Callable[..., Path]


@dataclass(frozen=True)
class Linear:
    """``activation(flatten(x) @ weight + bias)``: one subnet, or the reference, in numpy and in ONNX."""

    weight: np.ndarray
    """FP32 [elements, outputs]."""
    bias: np.ndarray
    """FP32 [outputs]."""
    head: Head | Literal["softmax"]

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Scores [N, classes] of inputs [N, ...]."""
        logits = inputs.reshape(len(inputs), -1).astype(np.float64) @ self.weight + self.bias
        if self.head == "sigmoid":
            return 1 / (1 + np.exp(-logits))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        return probabilities[:, :-1] if self.head == "softmax_others" else probabilities

    def onnx(self, spec: InputSpec) -> bytes:
        """The same as an ONNX file: any N in, FP32 `scores` [N, classes] out."""
        outputs = self.weight.shape[1]
        constants = [numpy_helper.from_array(self.weight, "weight"), numpy_helper.from_array(self.bias, "bias")]
        nodes = [
            helper.make_node("Flatten", [spec.name], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
        ]
        if self.head == "sigmoid":
            nodes.append(helper.make_node("Sigmoid", ["logits"], ["scores"]))
        elif self.head == "softmax":
            nodes.append(helper.make_node("Softmax", ["logits"], ["scores"], axis=1))
        else:
            outputs -= 1
            bounds = {"starts": 0, "ends": outputs, "axes": 1}
            constants += [numpy_helper.from_array(np.array([at]), name) for name, at in bounds.items()]
            nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
            nodes.append(helper.make_node("Slice", ["probabilities", *bounds], ["scores"]))
        graph = helper.make_graph(
            nodes,
            "subnet",
            [helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, ["N", *spec.shape])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", outputs])],
            constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()


def write_bundle(
    path: Path,
    *,
    name: str = "tiny",
    n_classes: int = 10,
    assignment: Assignment | None = None,
    shape: tuple[int, ...] = (3, 8, 8),
    head: Head = "sigmoid",
    labels: tuple[str, ...] | None = None,
    image: ImageSpec | Literal["auto"] | None = "auto",
    normalisation: Normalisation | None = None,
    rule: str = "majority",
    threshold: float = 0.5,
    reference: bool = False,
    copies_differ: float = 0.1,
    n_golden: int = 8,
    seed: int = 0,
) -> Path:
    """A bundle of linear subnets whose golden answers are computed in numpy, apart from the code under test.

    Args:
        path: where to.
        name: of the model.
        n_classes: C.
        assignment: cyclic (0, 1, 3) over the classes, or as much of it as fits them, where None.
        shape: of one input.
        head: of every subnet.
        labels: ``class-0``, ``class-1``, ... where None.
        image: pictures of that shape where "auto" and the shape is one; None for a model that takes numbers.
        normalisation: 0..255 to about -1..1 for pictures, none else, where None.
        rule: how copies are merged.
        threshold: from which score on a copy votes.
        reference: write reference.onnx too.
        copies_differ: how much the copies of one class differ, against weights of about 1.
        n_golden: golden samples.
        seed: of the weights and samples.
    """
    random = np.random.default_rng(seed)
    if assignment is None:
        assignment = cyclic(n_classes, tuple(o for o in (0, 1, 3) if o < n_classes))
    is_picture = len(shape) == 3 and shape[0] in (1, 3)
    if image == "auto":
        image = ImageSpec(mode="RGB" if shape[0] == 3 else "L", resize=shape[1:]) if is_picture else None
    if normalisation is None:
        normalisation = Normalisation(scale=1 / 255, mean=(0.5,), std=(0.5,)) if image else Normalisation()
    spec = InputSpec(shape=shape, normalisation=normalisation, image=image)

    weight = random.normal(size=(spec.elements, assignment.n_classes + 1)) * 2 / np.sqrt(spec.elements)
    networks = []
    for row in assignment.rows:
        columns = [*row, -1] if head == "softmax_others" else list(row)
        own = (
            weight[:, columns] + random.normal(size=(spec.elements, len(columns))) * copies_differ / spec.elements**0.5
        )
        networks.append(Linear(own.astype(np.float32), np.zeros(len(columns), np.float32), head))
    whole = Linear(weight[:, :-1].astype(np.float32), np.zeros(assignment.n_classes, np.float32), "softmax")

    (path / "subnets").mkdir(parents=True)
    subnets, checksums = [], {}
    for worker, (row, network) in enumerate(zip(assignment.rows, networks, strict=True)):
        file = f"subnets/{worker:02}.onnx"
        digest = _write(path / file, network.onnx(spec))
        macs = network.weight.size
        subnets.append(SubnetSpec(worker, file, digest, row, head, macs, macs + network.bias.size))
    if reference:
        checksums[REFERENCE] = _write(path / REFERENCE, whole.onnx(spec))
    inputs = random.normal(size=(n_golden, *shape)).astype(np.float32)
    scores, class_id = vote(assignment, [network(inputs) for network in networks], threshold)
    np.savez(path / GOLDEN, inputs=inputs, scores=scores.astype(np.float32), class_id=class_id)
    checksums[GOLDEN] = hashlib.sha256((path / GOLDEN).read_bytes()).hexdigest()
    manifest = Manifest(
        name=name,
        labels=labels or tuple(f"class-{c}" for c in range(assignment.n_classes)),
        input=spec,
        subnets=tuple(subnets),
        kind=assignment.kind,
        offsets=assignment.offsets,
        symbols=assignment.symbols,
        merge=MergeSpec(rule, threshold),
        reference=REFERENCE if reference else None,
        checksums=checksums,
    )
    (path / MANIFEST).write_text(manifest.to_json())
    return path


def vote(assignment: Assignment, copies: list[np.ndarray], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean scores [N, C] and elected classes [N] with all workers present, the plain way."""
    n_inputs = len(copies[0])
    scores, class_id = np.zeros((n_inputs, assignment.n_classes)), np.zeros(n_inputs, np.int64)
    for n in range(n_inputs):
        keys = []
        for c, workers in enumerate(assignment.workers_of):
            values = [copies[w][n, assignment.rows[w].index(c)] for w in workers]
            scores[n, c] = np.mean(values)
            elected = sum(v >= threshold for v in values) * 2 > len(values)
            keys.append((elected, scores[n, c], -c))
        class_id[n] = -max(keys)[2]
    return scores, class_id


def _write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """Writes a bundle and returns its directory, a new one where no path is given. See `write_bundle`."""

    def make(path: Path | None = None, **options: Any) -> Path:
        return write_bundle(path or tmp_path_factory.mktemp("bundles") / "bundle", **options)

    return make


@pytest.fixture(scope="session")
def tiny_bundle(make_bundle: MakeBundle) -> Path:
    """Ten classes, cyclic (0, 1, 3), RGB images of 8 x 8, with a reference. Read it, do not change it."""
    return make_bundle(reference=True)
