"""Points of ``sensai compare`` as ONNX files with their accuracy: made here, or somebody else's network."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt
import onnx

from export import precisions
from export.assemble import export
from export.evaluate import merged_accuracy, scores_of
from export.parity import check_parity
from export.sessions import session
from export.to_onnx import OUTPUT, to_onnx
from pruning import heads, models
from pruning.cutting.size import measure
from pruning.data import Dataset, Labels
from pruning.heads import Subnet
from pruning.notices import say
from pruning.run import Run
from sensai_serve.bundles import Bundle, atomic_directory, atomic_file, sha256_of
from sensai_serve.errors import InputError, OutputExistsError, first_line
from sensai_serve.merge.fit_confidence import answer_in_turn
from sensai_serve.merge.lost_workers import ScoredInputs, accuracy, accuracy_curve
from sensai_serve.onnx_signature import read_signature
from sensai_serve.preprocess import InputSpec, normalise

RESULT, NETWORK = "result.json", "network.onnx"
INT8 = "int8"
BATCH = 256
MOST_LOST = 4
"""The most workers without which the accuracy of a point is computed."""


@dataclass(frozen=True)
class PointResult:
    """Accuracy, sizes and files of a finished point."""

    digests: dict[str, str]
    """SHA-256 of the data, and of the weights or the file that it was made from."""
    validation: float
    """Accuracy on the validation part, in [0, 1]."""
    test: float
    """Accuracy on the test part, in [0, 1]."""
    macs: tuple[int, ...]
    """Multiply-accumulate operations of each network for one input; 0 where they are not known."""
    parameters: tuple[int, ...]
    """Number of weights of each network; 0 where it is not known."""
    files: tuple[str, ...]
    """Paths of the ONNX files, relative to the point's directory."""
    worst: float | None = None
    """Accuracy on the test part without the worker that can be spared least; None for a single network."""
    worst_two: float | None = None
    """Accuracy on the test part without the two workers that can be spared least; None for fewer than three."""
    sure: float | None = None
    """Accuracy on the test part where answers that are sure ask no further worker; None without thresholds for it."""
    asked: float | None = None
    """Mean number of workers that such an answer asks, one after the other."""
    lost_mean: tuple[float, ...] = ()
    """Mean test accuracy over all sets of 0, 1, ... `MOST_LOST` lost workers; empty for a single network."""

    def save(self, folder: Path) -> None:
        """Write the result into the point's directory."""
        with atomic_file(folder / RESULT) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def finished(folder: Path) -> PointResult | None:
    """The result of a point; None where it has none yet.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in raw.items()}
        return PointResult(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}), expected what `sensai compare` wrote; remove it") from None


def finish(run: Run, folder: Path) -> PointResult:
    """Export a finished run into the point's directory, and look at the test part, once.

    Args:
        run: a finished run.
        folder: the point's directory; what it holds already is not made again.

    Raises:
        SensaiError: as `export.assemble.export`.
    """
    if (done := finished(folder)) is not None:
        return done
    place = folder / "bundle"
    if not place.exists():
        export(run, place, name=folder.name, with_evaluation=False)
    bundle, dataset, (_, validation) = Bundle.open(place), run.dataset, run.split
    subnets = bundle.manifest.subnets
    plan = bundle.merge_plan
    scores = scores_of(bundle, dataset.x_test, dataset.prepared)
    scored = ScoredInputs(plan, scores)
    curve = accuracy_curve(scored, dataset.y_test, up_to=min(MOST_LOST, len(subnets) - 1))
    early, asked = answer_in_turn(scored) if plan.confidence is not None else (None, None)
    result = PointResult(
        run.digests,
        merged_accuracy(plan, scores_of(bundle, dataset.x[validation], dataset.prepared), dataset.y[validation]),
        merged_accuracy(plan, scores, dataset.y_test),
        tuple(subnet.macs for subnet in subnets),
        tuple(subnet.parameters for subnet in subnets),
        tuple(f"bundle/{subnet.file}" for subnet in subnets),
        curve[1].worst if len(curve) > 1 else None,
        curve[2].worst if len(curve) > 2 else None,
        None if early is None else accuracy(early, dataset.y_test),
        None if asked is None else float(asked.mean()),
        tuple(at_loss.mean for at_loss in curve) if len(curve) > 1 else (),
    )
    result.save(folder)
    return result


@dataclass(frozen=True)
class ExternalNetwork:
    """A network to compare with that was not made here: the reference, or another one."""

    name: str
    spec: InputSpec
    """The input, with the normalisation that the network was trained with."""
    sha256: str
    """SHA-256 of its file."""
    data: bytes
    """The network as an ONNX file."""
    macs: int = 0
    """Multiply-accumulate operations for one input; 0 where they are not known."""
    parameters: int = 0
    """Number of weights; 0 where it is not known."""


def read_external(text: str, dataset: Dataset) -> ExternalNetwork:
    """Read ``NAME=model:weights`` or ``NAME=file.onnx``, with ``?mean=...&std=...`` where the moments differ.

    Args:
        text: what the user gave.
        dataset: the data that the network is to classify.

    Raises:
        InputError: another form, no such file, moments that do not fit the input, or a network that does not fit the
            data.
        ModelError: the weights do not fit the model, or it cannot be exported.
    """
    name, equals, rest = text.partition("=")
    place, _, query = rest.partition("?")
    model, _, path = ("", "", place) if place.endswith(".onnx") else place.rpartition(":")
    if not (equals and path and (model or place.endswith(".onnx"))) or not name.replace("-", "").isalnum():
        raise InputError(f"--point is {text!r}, expected NAME=MODEL:WEIGHTS or NAME=FILE.onnx")
    if not Path(path).is_file():
        raise InputError(f"--point {name}: {path} is not there, expected a file")
    options = dict(parse_qsl(query))
    if unknown := set(options) - {"mean", "std"}:
        raise InputError(f"--point {name}: unknown option {min(unknown)!r}, expected mean, std")
    try:
        moments: dict[str, Any] = {key: tuple(map(float, value.split(","))) for key, value in options.items()}
        spec = replace(dataset.spec, normalisation=replace(dataset.spec.normalisation, **moments))
    except (ValueError, InputError) as error:
        raise InputError(f"--point {name}: mean or std does not fit ({error})") from None
    if model:
        return from_weights(name, model, Path(path), dataset, spec)
    return ExternalNetwork(name, spec, sha256_of(Path(path)), _checked(name, Path(path), dataset))


def from_weights(name: str, model: str, path: Path, dataset: Dataset, spec: InputSpec) -> ExternalNetwork:
    """A network of a model that `pruning.models` builds.

    Args:
        name: name of the point.
        model: name of the model.
        path: file with its weights.
        dataset: the data that it classifies.
        spec: the input, with the normalisation that the network was trained with.

    Raises:
        ModelError: the weights do not fit the model, or it cannot be exported.
    """
    network = models.create(model, dataset.n_classes, spec.shape, dataset.inputs)
    models.load_weights(network, path)
    subnet = Subnet(network, heads.find("softmax")).eval()
    size = measure(subnet, spec.shape)
    data = to_onnx(subnet, [spec])  # several inputs side by side, as measure_external gives them
    check_parity(subnet, data, normalise(dataset.x[:16], spec), name)
    return ExternalNetwork(name, spec, sha256_of(path), data, size.macs, size.parameters)


def measure_external(
    network: ExternalNetwork, dataset: Dataset, validation: Labels, folder: Path, digests: dict[str, str]
) -> PointResult:
    """Measure accuracy on the validation and the test part, once, and keep the result.

    Args:
        network: the network.
        dataset: the data that it classifies.
        validation: indices, in the training part, of the validation part.
        folder: the point's directory; a finished one is not made again.
        digests: SHA-256 of the data, under ``data``.

    Raises:
        OutputExistsError: the directory holds another point.
    """
    digests = {"data": digests["data"], "file": network.sha256}
    if (done := finished(folder)) is not None:
        if done.digests != digests:
            raise OutputExistsError(f"{folder} is of another file or other data, expected the same or another name")
        return done
    with atomic_directory(folder) as temporary:
        (temporary / NETWORK).write_bytes(network.data)
        result = PointResult(
            digests,
            _accuracy(network, dataset.x[validation], dataset.y[validation]),
            _accuracy(network, dataset.x_test, dataset.y_test),
            (network.macs,),
            (network.parameters,),
            (NETWORK,),
        )
        result.save(temporary)
    return result


def quantised(network: ExternalNetwork, dataset: Dataset, train: Labels, folder: Path) -> ExternalNetwork | None:
    """The same network in eight bits, which costs no training.

    Args:
        network: the network in FP32.
        dataset: the data that it classifies.
        train: indices of the images that are trained on; some of them show which values activations have.
        folder: directory of its point; the network of a finished one is read, not made again.

    Returns:
        The network under the name of that directory; None where it cannot be quantised, which is said.
    """
    network = replace(network, name=folder.name)
    if finished(folder) is not None:
        return replace(network, data=(folder / NETWORK).read_bytes())
    precision = precisions.find(INT8)
    drawn = np.random.default_rng(0).permutation(train)[: precision.calibration]
    try:
        return replace(network, data=precision.convert(network.data, normalise(dataset.x[drawn], network.spec)))
    except Exception as error:  # whatever ONNX Runtime's quantisation raises
        say(f"{network.name}: left out, the network cannot be quantised ({first_line(error)})")
        return None


def _checked(name: str, path: Path, dataset: Dataset) -> bytes:
    """Read an ONNX file, and check that it takes the data's inputs and gives a score for each class."""
    data = path.read_bytes()
    signature = read_signature(data)
    if (
        len(signature.inputs) != 1
        or not signature.inputs[0].accepts(dataset.spec.shape)
        or not (signature.outputs and signature.outputs[0].accepts((dataset.n_classes,)))
    ):
        shape = ", ".join(map(str, dataset.spec.shape))
        raise InputError(
            f"--point {name}: {path} is no network from FP32 [N, {shape}] to FP32 [N, {dataset.n_classes}]"
        )
    return _renamed(data)


def _renamed(data: bytes) -> bytes:
    """The same network, with its first output renamed to what ours is called."""
    proto = onnx.load_model_from_string(data)
    given = proto.graph.output[0].name
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [OUTPUT if name == given else name for name in names]
    proto.graph.output[0].name = OUTPUT
    return bytes(proto.SerializeToString())


def _accuracy(network: ExternalNetwork, x: npt.NDArray[np.generic], y: Labels) -> float:
    opened = session(network.data)
    feed = opened.get_inputs()[0].name
    labels = [
        opened.run(None, {feed: normalise(x[at : at + BATCH], network.spec)})[0].argmax(axis=1)
        for at in range(0, len(x), BATCH)
    ]
    return float((np.concatenate(labels) == y).mean())
