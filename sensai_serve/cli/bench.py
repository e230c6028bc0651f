"""``sensai bench``: latency against the reference and other servers, under faults, and as sizes grow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sensai_serve.cli.progress import progress
from sensai_serve.errors import WorkerError

if TYPE_CHECKING:
    from benchmarks.reporting.report import BenchmarkReport
    from benchmarks.subjects.inputs import LabelledInputs
    from sensai_serve.bundle import Bundle

app = typer.Typer()
bench = typer.Typer(help="Measure a bundle: latency, other servers, size, faults.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command()
def data(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="As `sensai prune --data` takes it.")],
    out: Annotated[Path, typer.Option(help="The .npz file: x, raw inputs, and y, their labels.")],
    seed: Annotated[int, typer.Option(help="That the test part is drawn with, where a source has none.")] = 0,
) -> None:
    """Write the test part of a data source to a file, for `--data` of the benchmarks, where no offline side is."""
    from benchmarks.subjects.inputs import (
        write_labelled,
    )
    from pruning.data import load

    dataset = load(source, seed=seed)
    write_labelled(out, dataset.x_test, dataset.y_test)
    typer.echo(f"{out}: {len(dataset.y_test)} labelled inputs")


BundleDirectory = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's directory.")]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|SOURCE",
        help="Labelled inputs: a file of `sensai bench data`, or a data source; the golden samples if not given.",
    ),
]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="For JSON, pictures and HTML; benchmarks/results/... if not given.")
]
Devices = Annotated[list[str] | None, typer.Option("--device", help="Where workers run; every core if not given.")]
BackendName = Annotated[str, typer.Option("--backend", help="What runs the workers.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


@bench.command()
def latency(
    bundle: BundleDirectory,
    *,
    data: Data = None,
    requests: Annotated[int, typer.Option(min=20, help="Of each network over each transport.")] = 2000,
    rounds: Annotated[int, typer.Option(min=3, help="In which all take their turns.")] = 20,
    transport: Annotated[list[str] | None, typer.Option(help="Say 'HTTP binary'; all if not given.")] = None,
    monolith: Annotated[
        Path | None, typer.Option(help="An ONNX file: one pruned network for all classes, to compare with.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Of each load of several clients; 0: none.")] = 3.0,
    steps: Annotated[int, typer.Option(min=0, help="Requests that are divided into steps; 0: none.")] = 500,
    device: Devices = None,
    backend: BackendName = "ort",
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Reference, monolith and class-parallel on the same cores, in turns, in process and over every transport."""
    from benchmarks.subjects.transports import TRANSPORTS
    from benchmarks.suites.latency import measure as benchmark
    from benchmarks.suites.latency.report import report
    from sensai_serve.errors import InputError

    if unknown := set(transport or ()) - set(TRANSPORTS):
        raise InputError(f"--transport is {min(unknown)!r}, expected {', '.join(TRANSPORTS)}")
    options = benchmark.LatencyOptions(
        requests=requests,
        rounds=rounds,
        transports=tuple(transport or TRANSPORTS),
        devices=tuple(device or ()),
        backend=backend,
        monolith=monolith,
        seconds=seconds,
        steps=steps,
    )
    opened = _open(bundle)
    with progress(quiet=quiet) as on_step:
        measured = benchmark.measure(opened, _labelled(opened, data), options, on_step)
    _publish(report(measured), out)


def _open(path: Path) -> Bundle:
    from sensai_serve.bundle import Bundle

    bundle = Bundle.open(path)
    bundle.verify()
    return bundle


def _labelled(bundle: Bundle, data: str | None) -> LabelledInputs:
    """The inputs that `--data` names, else the golden samples."""
    from benchmarks.subjects.inputs import (
        golden_inputs,
        labelled_from_arrays,
        read_labelled,
    )

    if data is None:
        return golden_inputs(bundle)
    spec, n_classes = bundle.manifest.input, len(bundle.manifest.labels)
    if data.endswith(".npz") and ":" not in data:
        return read_labelled(Path(data), spec, n_classes)
    from pruning.data import load

    # The test part is drawn with the seed that the bundle's own run drew it with, so that nothing trained on is in it.
    recipe = bundle.manifest.provenance.get("recipe", {})
    dataset = load(data, seed=int(recipe.get("seed", 0)))
    return labelled_from_arrays(data, {"x": dataset.x_test, "y": dataset.y_test}, spec, n_classes)


def _publish(report: BenchmarkReport, out: Path | None) -> None:
    from rich.console import Console

    from benchmarks.reporting.report import show, write

    out = out or Path("benchmarks/results") / f"{report.bench}-{report.subject}"
    write(report, out)
    show(report, Console())
    typer.echo(f"{out / 'report.html'}")


@bench.command()
def replay(
    bundle: BundleDirectory,
    data: Annotated[str, typer.Option(metavar="FILE|SOURCE", help="Labelled inputs, as for the other benchmarks.")],
    client: Annotated[str, typer.Option(help="lean | tritonclient")] = "tritonclient",
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Serve a bundle, send it a whole labelled set, and hold every label against the one its maker kept."""
    from benchmarks.suites.replay import replay as run
    from benchmarks.suites.replay import report

    opened = _open(bundle)
    with progress(quiet=quiet) as on_step:
        done = run(opened, _labelled(opened, data), client=client, on_step=on_step)
    _publish(report(done, client), out)
    if done.different:
        raise WorkerError(f"{done.different} labels differ from those that the bundle's maker kept, expected none")


@bench.command()
def stragglers(
    bundle: BundleDirectory,
    *,
    data: Data = None,
    case: Annotated[list[str] | None, typer.Option(help="Only this one; several times for several.")] = None,
    inputs: Annotated[int, typer.Option(min=1, help="The first so many of the data.")] = 1000,
    requests: Annotated[int, typer.Option(min=100, help="Of each measurement that counts requests.")] = 1000,
    seconds: Annotated[float, typer.Option(min=1, help="Of each that counts time: kills, overload.")] = 10.0,
    swaps: Annotated[int, typer.Option(min=1, help="Replacements of the model under load.")] = 20,
    beside: Annotated[
        list[Path] | None, typer.Option(help="Another bundle of the same classes, for the accuracy curve.")
    ] = None,
    device: Devices = None,
    backend: BackendName = "ort",
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Slow, dead, killed and wrong workers, overload, hot swaps: every answer held against the offline merge."""
    from benchmarks.suites.stragglers.cases import Context, StragglersOptions
    from benchmarks.suites.stragglers.measure import measure

    opened = _open(bundle)
    options = StragglersOptions(requests, seconds, swaps, backend, tuple(device or ()), seed)
    context = Context(
        opened, _labelled(opened, data).head(inputs), options, tuple(_open(path) for path in beside or ())
    )
    with progress(quiet=quiet) as on_step:
        report = measure(context, case or (), on_step)
    _publish(report, out)


@bench.command()
def scale(
    *,
    requests: Annotated[int, typer.Option(min=20, help="At each point.")] = 1000,
    rounds: Annotated[int, typer.Option(min=3, help="In which the points take their turns.")] = 20,
    workers: Annotated[str, typer.Option(help="Numbers of workers, at most 64.")] = "1,2,4,8,10,16,32,64",
    inputs: Annotated[str, typer.Option(help="Shapes of one input.")] = "3x32x32,3x64x64,3x128x128,3x224x224,3x480x640",
    clients: Annotated[str, typer.Option(help="Numbers of clients.")] = "1,2,4,8,16,32,64",
    classes: Annotated[str, typer.Option(help="Numbers of classes, at least 10.")] = "10,100,1000",
    device: Devices = None,
    backend: BackendName = "ort",
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """The server's own time by workers that compute nothing: workers, input size, classes, clients."""
    from benchmarks.suites.scale import measure as benchmark
    from benchmarks.suites.scale.report import report

    options = benchmark.ScaleOptions(
        requests=requests,
        rounds=rounds,
        workers=_numbers("--workers", workers, 1, benchmark.MOST_WORKERS),
        inputs=tuple(_numbers("--inputs", shape, 1, 1 << 16, "x") for shape in inputs.split(",")),
        clients=_numbers("--clients", clients, 1, 512),
        classes=_numbers("--classes", classes, benchmark.WORKERS, 100_000),
        devices=tuple(device or ()),
        backend=backend,
    )
    with progress(quiet=quiet) as on_step:
        measured = benchmark.measure(options, on_step)
    _publish(report(measured), out)


def _numbers(option: str, text: str, least: int, most: int, separator: str = ",") -> tuple[int, ...]:
    from sensai_serve.errors import InputError

    parts = text.split(separator)
    if not all(part.isascii() and part.isdigit() and least <= int(part) <= most for part in parts):
        raise InputError(f"{option}: {text!r}, expected numbers of {least} to {most} with {separator!r} between them")
    return tuple(map(int, parts))


@bench.command()
def peers(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="With a reference; a no-op one if not given.")
    ] = None,
    *,
    data: Data = None,
    peer: Annotated[list[str] | None, typer.Option(help="Only this one; several times for several.")] = None,
    requests: Annotated[int, typer.Option(min=20, help="Of each server, and as many of ours beside it.")] = 2000,
    rounds: Annotated[int, typer.Option(min=3, help="In which the two take their turns.")] = 20,
    device: Devices = None,
    backend: BackendName = "ort",
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """The same ONNX files behind FastAPI, MLServer, LitServe, BentoML, Ray Serve and tritonserver, beside ours.

    Each is installed, once, into an environment of its own in the user's cache directory.
    """
    import tempfile

    from benchmarks.subjects.noop import noop_bundle
    from benchmarks.suites.peers import measure as peers_run
    from benchmarks.suites.peers.report import report

    options = peers_run.PeersOptions(requests, rounds, tuple(device or ()), backend)
    with tempfile.TemporaryDirectory() as folder:
        opened = noop_bundle(Path(folder) / "noop") if bundle is None else _open(bundle)
        samples = _labelled(opened, data).samples()
        with progress(quiet=quiet) as on_step:
            measured = peers_run.measure(opened, samples, peer or (), options, on_step)
        _publish(report(measured), out)


@bench.command()
def device(
    bundles: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE...", help="One, or several of the same input: say one per precision."),
    ],
    *,
    on: Annotated[str, typer.Option("--device", help="cuda:CARD, or a core.")] = "cuda:0",
    data: Data = None,
    requests: Annotated[int, typer.Option(min=20, help="Of each network in each way.")] = 2000,
    rounds: Annotated[int, typer.Option(min=3, help="In which all take their turns.")] = 20,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """One device, every network of a bundle or of several: run plainly, through bound buffers, as CUDA graphs."""
    from benchmarks.suites import device as benchmark

    opened = [_open(path) for path in bundles]
    samples = _labelled(opened[0], data).samples()
    options = benchmark.DeviceOptions(on, requests, rounds)
    with progress(quiet=quiet) as on_step:
        measured = benchmark.measure(opened, samples, options, on_step)
    _publish(benchmark.report(measured), out)


@bench.command()
def speed(
    results: Annotated[Path, typer.Argument(metavar="DIR", help="With the runs.")] = Path("benchmarks/results"),
    *,
    readme: Annotated[Path | None, typer.Option(help="A page that quotes the table: it is put there anew.")] = None,
) -> None:
    """What the kept runs of scale, peers and latency say about the speed that is promised; writes speed.md beside."""
    from rich.console import Console
    from rich.table import Table

    from benchmarks.suites.speed import FILE, KeptRuns, write

    table = Table("figure", "aim", "measured", "holds")
    for figure in write(KeptRuns(results), results, readme):
        table.add_row(*figure.cells())
    Console().print(table)
    typer.echo(f"{results / FILE}")
