"""A whole labelled set sent to a served bundle; every label is compared with the one that the bundle's maker kept.

The maker's labels are in the bundle's ``evaluation.npz``. They come from the same ONNX files through the same merge,
but without a server. Replies that say that a copy that was not waited for could have changed their class may differ.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from benchmarks.harness import machine, servers
from benchmarks.harness.client import Client, RawClient
from benchmarks.harness.codecs import V2Binary, workers_of
from benchmarks.harness.stats import Summary, summarise
from benchmarks.harness.triton_client import TritonClient
from benchmarks.options import BundleDirectory, Out, Quiet, labelled_inputs, open_bundle, publish
from benchmarks.reporting.cells import milliseconds
from benchmarks.reporting.report import BenchmarkReport
from benchmarks.subjects import our_server
from benchmarks.subjects.inputs import LabelledInputs
from sensai_serve.bundles import Bundle
from sensai_serve.cli.progress import progress
from sensai_serve.errors import DataError, InputError, WorkerError
from sensai_serve.evaluation import kept_labels
from sensai_serve.merge import parse_wait
from sensai_serve.progress import OnProgress
from sensai_serve.report import Table

WARM_UP = 50
CLIENTS = ("lean", "tritonclient")
ARGUMENTS = ("--patience", "0")
"""Patience is off: on a busy machine it would give up a straggler, and the label might then differ."""


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
    exact: npt.NDArray[np.bool_]
    """[N], whether no copy that was not waited for could have changed the label."""
    copies: npt.NDArray[np.int64]
    """[N], number of workers that each answer was made of."""
    wait: str
    """What the requests waited for."""
    decided_early: int
    incomplete: int
    latency: Summary

    @property
    def accuracy(self) -> float:
        """Share of served labels that are right."""
        return float(np.mean(self.class_id == self.label))

    @property
    def different(self) -> int | None:
        """Inputs whose label is not the one that was kept, although it is exact; None where none was kept."""
        return None if self.kept is None else int(np.sum((self.class_id != self.kept) & self.exact))

    @property
    def stopped_wrong(self) -> int | None:
        """Inputs whose label is not that of all workers because not all were waited for; None where none was kept."""
        return None if self.kept is None else int(np.sum((self.class_id != self.kept) & ~self.exact))


def command(
    bundle: BundleDirectory,
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE|SOURCE", help="Labelled inputs: a file that `sensai bench data` wrote, or a data source."
        ),
    ],
    client: Annotated[str, typer.Option(help="lean | tritonclient")] = "tritonclient",
    wait: Annotated[
        str | None, typer.Option(help="What requests wait for, as for serve.", show_default="what the bundle says")
    ] = None,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Send a whole labelled set to a served bundle, and compare every label with the one that its maker kept.

    Exits with code 1 where a label differs, unless its reply says that it is not exact: that of a cascade that asked no
    further file, or of a request that waited for the first copies alone.
    """
    if client not in CLIENTS:
        raise InputError(f"--client is {client!r}, expected one of {', '.join(CLIENTS)}")
    opened = open_bundle(bundle)
    with progress(quiet=quiet) as on_step:
        done = replay(opened, labelled_inputs(opened, data), client=client, wait=wait, on_step=on_step)
    publish(report(done, client), out)
    if done.different:
        raise WorkerError(f"{done.different} labels differ from those that the bundle's maker kept, expected none")


def replay(
    bundle: Bundle,
    test: LabelledInputs,
    *,
    client: str = "lean",
    wait: str | None = None,
    on_step: OnProgress = lambda name, done, total: None,
) -> Replay:
    """Serve a bundle and send it labelled inputs over HTTP, one at a time.

    Args:
        bundle: the bundle to serve.
        test: the inputs to send, with labels.
        client: ``lean``, or ``tritonclient``.
        wait: what requests wait for; what the bundle says where None.
        on_step: hears of progress.

    Raises:
        DataError: the inputs have no labels.
        ServingError: the server does not start, or a request fails.
    """
    if test.labels is None:
        raise DataError("the inputs have no labels, expected some: --data FILE or SOURCE")
    samples, total = test.samples(), len(test.inputs)
    class_id, copies, seconds = np.empty(total, np.int64), np.empty(total, np.int64), np.empty(total)
    exact = np.empty(total, np.bool_)
    early = incomplete = 0
    waits = bundle.merge_plan.check_wait(parse_wait(wait or bundle.manifest.merge.default_wait))
    arguments = (*ARGUMENTS, "--wait", waits)
    with servers.running(our_server.spec(str(bundle.path), *arguments, port=servers.free_port())) as server:
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
            class_id[index], exact[index] = answer.class_id, answer.parameters["exact"]
            copies[index] = len(workers_of(answer, "arrived"))
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
        exact,
        copies,
        waits,
        early,
        incomplete,
        summarise(seconds),
    )


def report(done: Replay, client: str) -> BenchmarkReport:
    """The replay as a table and as plain data."""
    manifest, total = done.bundle.manifest, len(done.class_id)
    different, stopped = ("not known" if n is None else str(n) for n in (done.different, done.stopped_wrong))
    macs = [s.macs for s in manifest.subnets]
    reference = manifest.provenance.get("reference", {}).get("macs", 0)
    beside = [
        ("accuracy, each file alone", ", ".join(f"{one:.2%}" for one in manifest.accuracy.get("members", ()))),
        ("accuracy, reference", f"{manifest.accuracy['reference']:.2%}" if "reference" in manifest.accuracy else ""),
        ("MACs of the reference", f"{reference:,}" if reference else ""),
    ]
    rows = [
        ("inputs", f"{total:,}"),
        ("labels that differ from those kept", different),
        ("labels that are not those of all workers, in replies that say that they are not exact", stopped),
        ("accuracy, served", f"{done.accuracy:.2%}"),
        *((name, text) for name, text in beside if text),
        ("MACs per subnet", f"{min(macs):,} to {max(macs):,}" if min(macs) != max(macs) else f"{macs[0]:,}"),
        ("workers that an answer was made of, mean", f"{done.copies.mean():.2f}"),
        ("decided early", f"{done.decided_early / total:.1%}"),
        ("incomplete", str(done.incomplete)),
        ("p50, ms", milliseconds(done.latency.quantiles["p50"]).text),
        ("p99, ms", milliseconds(done.latency.quantiles["p99"]).text),
    ]
    results = {
        "inputs": total,
        "different": done.different,
        "stopped_wrong": done.stopped_wrong,
        "exact": float(done.exact.mean()),
        "copies": float(done.copies.mean()),
        "wait": done.wait,
        "accuracy": done.accuracy,
        "reference_accuracy": manifest.accuracy.get("reference"),
        "macs": macs,
        "reference_macs": reference,
        "decided_early": done.decided_early,
        "incomplete": done.incomplete,
        "latency_us": done.latency.to_json(),
        "recipe": manifest.provenance.get("recipe", {}),
    }
    redundancy = f"{manifest.kind} r={manifest.assignment.redundancy}"
    title = f"{manifest.name}: {redundancy}, wait {done.wait}, over HTTP with {client}"
    table = Table(title, ("", ""), rows, note="One input at a time; patience off, so that no straggler is given up.")
    return BenchmarkReport("replay", manifest.name, machine.describe(), {"client": client}, results, [table])
