"""Whole networks to compare a bundle with, run at their fastest: the reference, and the monolith where there is one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.harness.interleave import TimedCalls, in_turns
from benchmarks.harness.stats import Summary, summarise
from sensai_serve.bundles import GOLDEN, MANIFEST, Bundle
from sensai_serve.errors import BundleError, InputError
from sensai_serve.input_spec import ONNX_TYPES, InputSpec
from sensai_serve.manifest import SubnetSpec
from sensai_serve.onnx_signature import read_signature
from sensai_serve.preprocess import Floats
from sensai_serve.tensors import Array
from serving.runtime.devices import Device, Threads, require
from serving.runtime.session import Session

MONOLITH = "monolith"
"""Key in a manifest's provenance. It names a file of the bundle: one pruned network for all classes, which a user would
run in place of the subnets. Its SHA-256 is among the manifest's checksums."""
SEARCH_ROUNDS, SEARCH_RUNS = 10, 30


class OnnxNetwork:
    """An ONNX network from one tensor [N, *shape] to scores FP32 [N, C], run by as many threads as wanted."""

    def __init__(self, data: bytes, input_name: str, threads: Threads, device: Device | None = None) -> None:
        """Open it.

        Args:
            data: the ONNX file.
            input_name: the name of its one input.
            threads: threads on the CPU.
            device: the device to run on; any core where None.

        Raises:
            DeviceError: this machine does not have the device.
            BundleError: ONNX Runtime cannot run it.
        """
        device = device or Device("cpu")
        require([device])
        taken = read_signature(data).inputs[0]
        shape = tuple(size or 1 for size in (taken.shape or ())[1:]) or (1,)
        spec = InputSpec(shape=shape, name=input_name, dtype=ONNX_TYPES.get(taken.element_type, "FP32"))
        self.dtype = spec.numpy
        """Of its inputs."""
        self._runner = Session(data, device, [spec], "the network", threads).runner  # as our own workers are

    def run(self, inputs: Array) -> Floats:
        """Scores FP32 [N, C] of inputs [N, *shape] of the network's datatype."""
        return self._runner.run(inputs)


@dataclass(frozen=True)
class Fastest:
    """The outcome of the search for the fastest way to run a network."""

    threads: Threads
    tried: dict[str, Summary]
    """Latency by threads, in words."""


def monolith(bundle: Bundle, file: Path | None = None) -> bytes | None:
    """The bundle's monolith, checked; None where it has none.

    Args:
        bundle: whose provenance may name it.
        file: this one instead.

    Raises:
        BundleError: the file is missing, damaged, or no network for the bundle's input and classes.
    """
    manifest, name = bundle.manifest, bundle.manifest.provenance.get(MONOLITH)
    if file is None and not isinstance(name, str):
        return None
    path = file or (bundle.path / str(name)).resolve()
    if file is None and not path.is_relative_to(bundle.path.resolve()):
        raise BundleError(f"{bundle.path}: {name} leads out of the bundle")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    if file is None and hashlib.sha256(data).hexdigest() != manifest.checksums.get(str(name)):
        raise BundleError(f"{bundle.path}: {name} is not the file that was written")
    signature = read_signature(data)
    n_classes = len(manifest.labels)
    if (
        len(signature.inputs) != 1
        or signature.inputs[0].name != manifest.input.name
        or not signature.inputs[0].accepts(manifest.input.shape)
        or not (signature.outputs and signature.outputs[0].accepts((n_classes,)))
    ):
        raise BundleError(f"{path} is no network from {manifest.input.name} to FP32 [N, {n_classes}]")
    return data


def fastest(data: bytes, input_name: str, samples: Sequence[Floats], device: Device | None = None) -> Fastest:
    """Try every thread count that the cores allow, spinning and not, in turns.

    Args:
        data: the ONNX file.
        input_name: the name of its input.
        samples: FP32 [1, *shape] each.
        device: the device to run on; on a GPU there is nothing to search.
    """
    cores = 1 if device is not None and device.kind == "cuda" else len(os.sched_getaffinity(0))
    counts = sorted({1, cores, *(2**i for i in range(1, cores.bit_length()) if 2**i < cores)})
    ways = [Threads(n, spinning) for n in counts for spinning in ((False, True) if n > 1 else (False,))]
    subjects = {str(way): direct(OnnxNetwork(data, input_name, way, device), samples) for way in ways}
    times = in_turns(subjects, rounds=SEARCH_ROUNDS, per_round=SEARCH_RUNS, n_samples=len(samples))
    tried = {name: summarise(rounds) for name, rounds in times.items()}
    return Fastest(min(ways, key=lambda way: tried[str(way)].p50), tried)


def direct(network: OnnxNetwork, samples: Sequence[Floats]) -> TimedCalls:
    """A network run in this process, without any server, as something to measure; samples get its datatype before."""
    given = [np.asarray(sample, network.dtype) for sample in samples]
    return TimedCalls(lambda index: network.run(given[index]))


def as_bundle(data: bytes, bundle: Bundle, folder: Path, name: str) -> Bundle:
    """One whole network as a bundle of one worker, so that our server serves it too.

    Args:
        data: its ONNX file, from the bundle's input to scores of all its classes.
        bundle: whose input, labels and golden inputs it takes.
        folder: a new directory.
        name: the model's name.

    Raises:
        InputError: its scores are not in [0, 1], which subnets' are.
    """
    manifest = bundle.manifest
    inputs = bundle.golden().tensor
    scores = OnnxNetwork(data, manifest.input.name, Threads(1, spinning=False)).run(inputs)
    if not ((scores >= 0) & (scores <= 1)).all():
        raise InputError(f"{name} gives scores outside [0, 1], expected probabilities")
    (folder / "subnets").mkdir(parents=True)
    classes = tuple(range(len(manifest.labels)))
    (folder / "subnets/00.onnx").write_bytes(data)
    spec = SubnetSpec(0, "subnets/00.onnx", hashlib.sha256(data).hexdigest(), classes, "softmax")
    elected = np.argmax((scores >= manifest.merge.threshold) * 2.0 + scores, axis=1)  # as the merge has it for one copy
    np.savez(folder / GOLDEN, inputs=inputs, scores=scores, class_id=elected)
    digest = hashlib.sha256((folder / GOLDEN).read_bytes()).hexdigest()
    whole = replace(
        manifest,
        name=name,
        subnets=(spec,),
        merge=replace(manifest.merge, confident=None, wait=None, wave=()),
        kind="whole",
        offsets=(),
        symbols=(),
        reference=None,
        checksums={GOLDEN: digest},
        accuracy={},
        provenance={},
    )
    (folder / MANIFEST).write_text(whole.to_json())
    return Bundle.open(folder)
