"""Latency of every network of a bundle on one device: run plainly, through bound buffers, and as CUDA graphs.

Made for a GPU (bound buffers, CUDA graphs, half precision, the cost of a dispatch); a CPU core will do as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness import machine
from benchmarks.harness.interleave import RoundTimes, Subject, TimedCalls, in_turns
from benchmarks.harness.stats import Summary, summarise
from benchmarks.options import Data, Out, Quiet, Rounds, labelled_inputs, open_bundle, publish
from benchmarks.reporting.cells import microseconds
from benchmarks.reporting.report import BenchmarkReport, without_paths
from benchmarks.subjects.in_process import in_process
from benchmarks.subjects.networks import monolith
from sensai_serve.bundles import Bundle
from sensai_serve.cli.progress import progress
from sensai_serve.errors import InputError, first_line
from sensai_serve.onnx_fuse import fuse
from sensai_serve.preprocess import Floats
from sensai_serve.progress import OnProgress
from sensai_serve.report import Row, Table
from serving.engine.options import GatewayOptions
from serving.runtime.devices import Device, card_name, parse_device, providers, require, session_options
from serving.runtime.io_binding import BoundRunner, PlainRunner, Runner

PLAIN, BOUND, GRAPH = "plain", "bound", "CUDA graph"
ONE_BY_ONE, FUSED, PARALLEL = "all subnets, one after another", "all subnets, one graph", "class-parallel"
Key = tuple[str, str, str]
"""Bundle, network, and the way it is run."""


@dataclass(frozen=True)
class DeviceOptions:
    """Device, and amount of measuring."""

    device: str = "cuda:0"
    requests: int = 2000
    """Requests of each network in each way of running it."""
    rounds: int = 20
    samples: int = 64


@dataclass(frozen=True)
class DeviceResult:
    """Everything that one run found."""

    options: DeviceOptions
    machine: dict[str, Any]
    bundles: dict[str, str]
    """Precision by bundle; empty where its maker does not say."""
    times: dict[Key, RoundTimes] = field(default_factory=dict)
    missing: dict[Key, str] = field(default_factory=dict)
    """Reasons why networks could not be run in some way."""


def command(
    bundles: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE...", help="Directories of bundles of the same input, say one per precision."),
    ],
    *,
    on: Annotated[str, typer.Option("--device", help="Device to run on: cuda:CARD, or cpu:CORE.")] = "cuda:0",
    data: Data = None,
    requests: Annotated[int, typer.Option(min=20, help="Requests of each network in each way of running it.")] = 2000,
    rounds: Rounds = 20,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Measure every network of a bundle on one device: run plainly, through bound buffers, and as CUDA graphs."""
    opened = [open_bundle(path) for path in bundles]
    samples = labelled_inputs(opened[0], data).samples()
    with progress(quiet=quiet) as on_step:
        measured = measure(opened, samples, DeviceOptions(on, requests, rounds), on_step)
    publish(report(measured), out)


def measure(
    bundles: Sequence[Bundle], samples: Sequence[Floats], options: DeviceOptions, on_step: OnProgress
) -> DeviceResult:
    """Run the benchmark.

    Args:
        bundles: bundles of the same input, say one run in several precisions.
        samples: FP32 [1, *shape] each.
        options: device, and amount of measuring.
        on_step: hears of progress.

    Raises:
        DeviceError: this machine does not have the device.
        InputError: the bundles take different inputs.
    """
    device, samples = parse_device(options.device), samples[: options.samples]
    require([device])
    if len({bundle.manifest.input.shape for bundle in bundles}) > 1:
        raise InputError("the bundles take inputs of different shapes, expected the same")
    card = {"card": card_name(device.index or 0)} if device.kind == "cuda" else {}
    measured = DeviceResult(options, machine.describe() | card, {})
    with ExitStack() as stack:
        subjects: dict[Key, Subject] = {}
        for done, bundle in enumerate(bundles):
            on_step("open", done, len(bundles))
            name = _name(bundle, measured.bundles)
            measured.bundles[name] = bundle.manifest.precision
            for way, on in _ways(device).items():
                for what, subject in _subjects(stack, bundle, way, on, samples):
                    if isinstance(subject, str):
                        measured.missing[name, what, way] = subject
                    else:
                        subjects[name, what, way] = subject
        on_step("open", len(bundles), len(bundles))
        measured.times.update(
            in_turns(
                subjects,
                rounds=options.rounds,
                per_round=max(options.requests // options.rounds, 1),
                n_samples=len(samples),
                on_round=lambda done, total: on_step("latency", done, total),
            )
        )
    return measured


def _name(bundle: Bundle, taken: dict[str, str]) -> str:
    name = bundle.path.resolve().name
    return name if name not in taken else f"{name} ({len(taken)})"


def _subjects(
    stack: ExitStack, bundle: Bundle, way: str, device: Device, samples: Sequence[Floats]
) -> Iterator[tuple[str, Subject | str]]:
    """Every network of one bundle, ready to run in one way, or the reason why it cannot be."""
    spec, workers = bundle.manifest.input, range(bundle.assignment.n_workers)
    subnets = [bundle.subnet(worker) for worker in workers]
    largest = max(workers, key=lambda worker: (bundle.manifest.subnets[worker].macs, len(subnets[worker])))
    whole = {"reference": bundle.reference(), "monolith": monolith(bundle), "largest subnet": subnets[largest]}

    def alone(data: bytes) -> Subject:
        runner = _open(data, device, way, spec.name, spec.shape)
        return TimedCalls(lambda index: runner.run(samples[index]))

    def one_by_one() -> Subject:
        runners = [_open(data, device, way, spec.name, spec.shape) for data in subnets]
        return TimedCalls(lambda index: [runner.run(samples[index]) for runner in runners])

    def parallel() -> Subject:
        return stack.enter_context(in_process(bundle, GatewayOptions(devices=(device,)), samples))

    makers: dict[str, Callable[[], Subject]] = {
        name: partial(alone, data) for name, data in whole.items() if data is not None
    }
    makers |= {ONE_BY_ONE: one_by_one, FUSED: lambda: alone(fuse(subnets, spec.name))}
    if way != PLAIN:  # the server binds by itself
        makers[PARALLEL] = parallel
    for name, make in makers.items():
        try:
            yield name, make()
        except Exception as error:  # a way that a device does not have is a finding, not an end
            yield name, without_paths(first_line(error))


def _ways(device: Device) -> dict[str, Device]:
    ways = {PLAIN: replace(device, graphs=False), BOUND: replace(device, graphs=False)}
    return ways | ({GRAPH: replace(device, graphs=True)} if device.kind == "cuda" else {})


def _open(data: bytes, device: Device, way: str, input_name: str, shape: Sequence[int]) -> Runner:
    import onnxruntime as ort

    session = ort.InferenceSession(data, session_options(device), providers=providers(device))
    session.disable_fallback()
    if way == PLAIN:
        runner: Runner = PlainRunner(session, input_name, shape)
    else:
        runner = BoundRunner(session, device, input_name, shape)
    runner.warm()
    return runner


def report(measured: DeviceResult) -> BenchmarkReport:
    """The report of a run."""
    summaries = {key: summarise(rounds) for key, rounds in measured.times.items()}
    subject = "-".join([*measured.bundles, measured.options.device.replace(":", "")])
    results = {
        "latency": [
            {"bundle": bundle, "network": network, "way": way, **one.to_json()}
            for (bundle, network, way), one in summaries.items()
        ],
        "missing": [
            {"bundle": bundle, "network": network, "way": way, "why": why}
            for (bundle, network, way), why in measured.missing.items()
        ],
        "precision": measured.bundles,
    }
    parts = list(_tables(measured, summaries))
    return BenchmarkReport("device", subject, measured.machine, asdict(measured.options), results, parts)


def _tables(measured: DeviceResult, summaries: dict[Key, Summary]) -> Iterator[Table]:
    ways = list(dict.fromkeys(way for _, _, way in measured.times))
    for quantile in ("p50", "p99"):
        rows: list[Row] = []
        for bundle, precision in measured.bundles.items():
            for network in dict.fromkeys(network for of, network, _ in measured.times if of == bundle):
                found = [summaries.get((bundle, network, way)) for way in ways]
                cells = [microseconds(None if one is None else one.quantiles[quantile]) for one in found]
                rows.append((f"{bundle}{precision and f', {precision}'}: {network}", *cells))
        note = f"Microseconds, 95% intervals; one input at a time, {measured.options.requests} each, in turns. A run "
        note += "begins and ends in this process's memory: copies to the device and back are in it."
        yield Table(f"Latency on {measured.options.device}, {quantile}", ("", *ways), rows, note)
    if measured.missing:
        reasons: list[Row] = [
            (f"{bundle}: {what}, {way}", why) for (bundle, what, way), why in measured.missing.items()
        ]
        yield Table("Not measured", ("", "why"), reasons, prose=True)
