"""What subnets take in memory: opened as the server opens them, and as separate ONNX Runtime sessions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness import machine
from benchmarks.options import Out, Quiet, publish
from benchmarks.reporting.report import BenchmarkReport
from sensai_serve.bundles import Bundle
from sensai_serve.byte_sizes import show_bytes
from sensai_serve.cli.progress import progress
from sensai_serve.errors import ServingError
from sensai_serve.process_memory import anonymous_bytes
from sensai_serve.progress import OnProgress
from sensai_serve.report import Row, Table
from sensai_serve.tensors import arrays_of, example

COUNTS = 10, 30, 100
"""Numbers of subnets that are opened in one process."""
OURS, SEPARATE = "as served", "separate sessions"
_CHILD = "import sys; from benchmarks.suites.memory import main; main(*sys.argv[1:])"


def command(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="The bundle whose subnets are opened.")] = (
        "example:cifar10"
    ),
    *,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Measure the memory of 10 to 100 subnets in one process: opened as served, and as separate sessions."""
    with progress(quiet=quiet) as on_step:
        found = measure(Bundle.open(Path(bundle)), on_step=on_step)
    publish(report(found), out)


def measure(
    bundle: Bundle, counts: Sequence[int] = COUNTS, *, on_step: OnProgress = lambda stage, done, total: None
) -> dict[str, Any]:
    """Open so many subnets in a fresh process, one after the other, and run each once.

    Args:
        bundle: its subnets are opened, again and again from the first.
        counts: how many subnets.
        on_step: hears of progress.

    Returns:
        The machine, and by way and count the bytes that all subnets take together.

    Raises:
        ServingError: a process fails, or this system does not count a process's memory.
    """
    found: dict[str, dict[str, int]] = {OURS: {}, SEPARATE: {}}
    for done, count in enumerate(counts, 1):
        for way, taken in found.items():
            command = [sys.executable, "-c", _CHILD, str(bundle.path), way, str(count)]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode or (bytes_ := json.loads(ended.stdout)) is None:
                raise ServingError(f"memory of {count} subnets: {(ended.stderr.splitlines() or ['not counted'])[-1]}")
            taken[str(count)] = bytes_
        on_step("open", done, len(counts))
    return {"subject": bundle.manifest.name, "machine": machine.describe(), "bytes": found}


def main(path: str, way: str, count: str) -> None:
    """The process: open subnets, and print as JSON what they take."""
    bundle = Bundle.open(Path(path))
    feed = arrays_of(example(bundle.manifest.inputs), bundle.manifest.inputs)
    inputs, kept = example(bundle.manifest.inputs), list[Any]()

    def open_(number: int) -> None:
        worker = number % bundle.assignment.n_workers
        if way == OURS:
            from serving.runtime.devices import Device
            from serving.runtime.session import Session

            kept.append(Session.of_worker(bundle, worker, Device("cpu")))
            kept[-1].run(inputs)
        else:
            import onnxruntime as ort

            options = ort.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            kept.append(ort.InferenceSession(bundle.subnet(worker), options, providers=["CPUExecutionProvider"]))
            kept[-1].run(None, dict(feed))

    open_(0)  # what the first session of a process takes once is nobody's share
    trimmed = way == OURS  # as the server does; separate sessions keep what opening them has freed
    before = anonymous_bytes(trimmed=trimmed)
    for number in range(int(count)):
        open_(number)
    after = anonymous_bytes(trimmed=trimmed)
    sys.stdout.write(json.dumps(None if before is None or after is None else after - before))


def report(found: Mapping[str, Any]) -> BenchmarkReport:
    """The report of what `measure` found."""
    taken: dict[str, dict[str, int]] = found["bytes"]
    rows: list[Row] = [
        (
            count,
            show_bytes(taken[OURS][count] // int(count)),
            show_bytes(taken[SEPARATE][count] // int(count)),
            f"{taken[OURS][count] / taken[SEPARATE][count]:.2f}x",
        )
        for count in taken[OURS]
    ]
    note = (
        "Memory that the process has for itself, each subnet run once. Subnets as served share an arena, and what "
        "opening them has freed goes back to the system; separate sessions have ONNX Runtime's defaults."
    )
    table = Table("Memory of a subnet", ("subnets", OURS, SEPARATE, "ratio"), rows, note)
    return BenchmarkReport("memory", found["subject"], found["machine"], {"counts": list(taken[OURS])}, taken, [table])
