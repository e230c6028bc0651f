"""A whole labelled set sent to a served bundle; every label is compared with the one that the bundle's maker kept.

The maker's labels are in the bundle's ``evaluation.npz``. They come from the same ONNX files through the same merge,
but without a server.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from benchmarks.harness import machine, servers
from benchmarks.harness.client import Client, RawClient
from benchmarks.harness.codecs import V2Binary
from benchmarks.harness.stats import Summary, summarise
from benchmarks.harness.triton_client import TritonClient
from benchmarks.options import BundleDirectory, Out, Quiet, labelled_inputs, open_bundle, publish
from benchmarks.reporting.cells import milliseconds
from benchmarks.reporting.report import BenchmarkReport
from benchmarks.subjects import our_server
from benchmarks.subjects.inputs import LabelledInputs, kept_labels
from sensai_serve.bundles import Bundle
from sensai_serve.cli.progress import progress
from sensai_serve.errors import DataError, InputError, WorkerError
from sensai_serve.report import Table

WARM_UP = 50
CLIENTS = ("lean", "tritonclient")
ARGUMENTS = ("--patience", "0")
"""Patience is off: on a busy machine it would give up a straggler, and the label might then differ."""
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Replay:
    """The labels and latencies of a labelled set that was sent to a served bundle."""

    bundle: Bundle
    class_id: npt.NDArray[np.int64]
    """[N], labels that the server gave."""
    label: npt.NDArray[np.int64]
    """[N], true labels."""
    kept: npt.NDArray[np.int64] | None
    """[N], labels that the bundle's maker kept; None where it kept none, or of other inputs."""
    decided_early: int
    incomplete: int
    latency: Summary

    @property
    def accuracy(self) -> float:
        """Share of served labels that are right."""
        return float(np.mean(self.class_id == self.label))

    @property
    def different(self) -> int | None:
        """Inputs whose label is not the one that was kept; None where none was."""
        return None if self.kept is None else int(np.sum(self.class_id != self.kept))


def command(
    bundle: BundleDirectory,
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE|SOURCE", help="Labelled inputs: a file that `sensai bench data` wrote, or a data source."
        ),
    ],
    client: Annotated[str, typer.Option(help="lean | tritonclient")] = "tritonclient",
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Send a whole labelled set to a served bundle, and compare every label with the one that its maker kept.

    Exits with code 1 where a label differs.
    """
    if client not in CLIENTS:
        raise InputError(f"--client is {client!r}, expected one of {', '.join(CLIENTS)}")
    opened = open_bundle(bundle)
    with progress(quiet=quiet) as on_step:
        done = replay(opened, labelled_inputs(opened, data), client=client, on_step=on_step)
    publish(report(done, client), out)
    if done.different:
        raise WorkerError(f"{done.different} labels differ from those that the bundle's maker kept, expected none")


def replay(
    bundle: Bundle, test: LabelledInputs, *, client: str = "lean", on_step: OnStep = lambda name, done, total: None
) -> Replay:
    """Serve a bundle and send it labelled inputs over HTTP, one at a time.

    Args:
        bundle: the bundle to serve.
        test: the inputs to send, with labels.
        client: ``lean``, or ``tritonclient``.
        on_step: hears of progress.

    Raises:
        DataError: the inputs have no labels.
        ServingError: the server does not start, or a request fails.
    """
    if test.labels is None:
        raise DataError("the inputs have no labels, expected some: --data FILE or SOURCE")
    samples, total = test.samples(), len(test.inputs)
    class_id, seconds = np.empty(total, np.int64), np.empty(total)
    early = incomplete = 0
    with servers.running(our_server.spec(str(bundle.path), *ARGUMENTS, port=servers.free_port())) as server:
        asks: Client
        if client == "tritonclient":
            asks = TritonClient("http", server.host, server.port, bundle.manifest.name, samples)
        else:
            codec = V2Binary(bundle.manifest.name, bundle.manifest.input.name)
            asks = RawClient(server.host, server.port, codec, samples)
        for index in range(min(WARM_UP, total)):
            asks.exchange(index)
        for index in range(total):
            before = time.perf_counter()
            asks.exchange(index)
            seconds[index] = time.perf_counter() - before
            answer = asks.answer()
            class_id[index] = answer.class_id
            early += bool(answer.parameters["decided_early"])
            incomplete += not answer.parameters["complete"]
            on_step("replay", index + 1, total)
        asks.close()
    kept = kept_labels(bundle)
    same = kept is not None and np.array_equal(kept["label"], test.labels)
    return Replay(
        bundle,
        class_id,
        test.labels,
        kept["class_id"] if kept is not None and same else None,
        early,
        incomplete,
        summarise(seconds),
    )


def report(done: Replay, client: str) -> BenchmarkReport:
    """The replay as a table and as plain data."""
    manifest, total = done.bundle.manifest, len(done.class_id)
    different = "not known" if done.different is None else str(done.different)
    macs = [s.macs for s in manifest.subnets]
    reference = manifest.provenance.get("reference", {}).get("macs", 0)
    rows = [
        ("inputs", f"{total:,}"),
        ("labels that differ from those kept", different),
        ("accuracy, served", f"{done.accuracy:.2%}"),
        ("accuracy, reference", f"{manifest.accuracy['reference']:.2%}" if "reference" in manifest.accuracy else ""),
        ("MACs per subnet", f"{min(macs):,} to {max(macs):,}" if min(macs) != max(macs) else f"{macs[0]:,}"),
        ("MACs of the reference", f"{reference:,}"),
        ("decided early", f"{done.decided_early / total:.1%}"),
        ("incomplete", str(done.incomplete)),
        ("p50, ms", milliseconds(done.latency.quantiles["p50"]).text),
        ("p99, ms", milliseconds(done.latency.quantiles["p99"]).text),
    ]
    results = {
        "inputs": total,
        "different": done.different,
        "accuracy": done.accuracy,
        "reference_accuracy": manifest.accuracy.get("reference"),
        "macs": macs,
        "reference_macs": reference,
        "decided_early": done.decided_early,
        "incomplete": done.incomplete,
        "latency_us": done.latency.to_json(),
        "recipe": manifest.provenance.get("recipe", {}),
    }
    title = f"{manifest.name}: {manifest.kind} r={manifest.assignment.redundancy}, served, over HTTP with {client}"
    table = Table(title, ("", ""), rows, note="One input at a time; patience off, so that every answer is complete.")
    return BenchmarkReport("replay", manifest.name, machine.describe(), {"client": client}, results, [table])
