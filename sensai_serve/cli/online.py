"""``sensai serve`` and ``sensai predict``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from sensai_serve.bundle import Bundle
    from sensai_serve.cli.samples import Sample
    from serving.placement.worker_map import WorkerMap
    from serving.settings import Described

Classify = Callable[["Sample"], dict[str, Any]]

app = typer.Typer()


@app.command()
def serve(
    bundles: Annotated[list[Path] | None, typer.Argument(help="Directories of bundles.")] = None,
    *,
    repository: Annotated[
        Path | None, typer.Option(help="Serve every bundle in this directory, and let clients load and unload them.")
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="Where workers run: cpu:CORE or cuda:CARD; give it several times.")
    ] = None,
    http: Annotated[str | None, typer.Option(help="HOST:PORT of HTTP; port 0 is any free one.")] = None,
    grpc: Annotated[str | None, typer.Option(help="HOST:PORT of gRPC; it listens only when this is given.")] = None,
    listen: Annotated[
        list[str] | None, typer.Option(help="TRANSPORT=ADDRESS of a further listener; give it several times.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="What runs the workers.")] = None,
    processes: Annotated[
        str | None, typer.Option(help="With backend process, what has a process of its own: worker or device.")
    ] = None,
    wait: Annotated[str | None, typer.Option(help="What requests wait for: decided, all, quorum or first.")] = None,
    patience: Annotated[
        float | None, typer.Option(help="Give a straggler up after so many times what healthy workers take; 0: never.")
    ] = None,
    deadline_ms: Annotated[float | None, typer.Option(help="Time a request has that does not say.")] = None,
    max_in_flight: Annotated[int | None, typer.Option(help="Requests at a time; more are refused.")] = None,
    on_missing: Annotated[
        str | None, typer.Option(help="When a class has no copy left: refuse, degrade or reference.")
    ] = None,
    abstain_unelected: Annotated[
        bool | None, typer.Option("--abstain-unelected", help="Give no class where no majority votes for one.")
    ] = None,
    abstain_margin: Annotated[
        float | None, typer.Option(help="Give no class where the best mean score leads by less.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each subnet on the CPU.")] = None,
    log_format: Annotated[str | None, typer.Option(help="Of the log on standard error: text or json.")] = None,
    access_log: Annotated[
        bool | None, typer.Option("--access-log", help="A line in the log for every request.")
    ] = None,
    settings_file: Annotated[
        Path | None, typer.Option("--settings", help="A TOML file of settings; flags and the environment win over it.")
    ] = None,
    show_settings: Annotated[
        bool, typer.Option("--show-settings", help="Print every setting and where it comes from, and exit.")
    ] = False,
    fault: Annotated[
        list[str] | None, typer.Option(help="Let workers fail on purpose: 3:delay=50ms, 0+4:drop=0.1.")
    ] = None,
    worker: Annotated[
        list[str] | None, typer.Option(help="Which worker runs where: 0,3=grpc://HOST:PORT, 5=cpu:0, '*=...'.")
    ] = None,
    workers: Annotated[Path | None, typer.Option(help="A file of such lines, as `sensai place` prints it.")] = None,
    worker_ca: Annotated[Path | None, typer.Option(help="A PEM file: whose certificates nodes must have.")] = None,
    worker_cert: Annotated[Path | None, typer.Option(help="A PEM file: our certificate, for nodes that ask.")] = None,
    worker_key: Annotated[Path | None, typer.Option(help="A PEM file: its private key.")] = None,
    worker_token_file: Annotated[Path | None, typer.Option(help="A file: the token that nodes ask for.")] = None,
) -> None:
    """Serve bundles over HTTP until SIGTERM. Every option is also a variable of the environment, SENSAI_..."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its library would write lines of its own to stderr
    from sensai_serve.bundle import Bundle
    from sensai_serve.errors import InputError
    from serving.engine.repository import Repository
    from serving.server import run
    from serving.settings import describe_settings, load_settings

    flags: dict[str, Any] = {
        "http": http,
        "grpc": grpc,
        "listen": listen or None,
        "repository": repository,
        "log_format": log_format,
        "access_log": access_log,
        "inference": {
            "devices": device or None,
            "backend": backend,
            "processes": processes,
            "wait": wait,
            "patience": patience,
            "deadline_ms": deadline_ms,
            "on_missing": on_missing,
            "abstain_unelected": abstain_unelected,
            "abstain_margin": abstain_margin,
            "threads": threads,
            "faults": fault or None,
        },
        "remote": {
            "workers": worker or None,
            "file": workers,
            "ca": worker_ca,
            "cert": worker_cert,
            "key": worker_key,
            "token_file": worker_token_file,
        },
        "limits": {"in_flight": max_in_flight},
    }
    if show_settings:
        _show(describe_settings(settings_file, **flags))
        return
    settings = load_settings(settings_file, **flags)
    opened = [Bundle.open(path) for path in [*(bundles or []), *_bundles_in(settings.repository)]]
    if not opened and settings.repository is None:
        raise InputError("nothing to serve, expected directories of bundles or --repository")
    options = settings.gateway_options()
    served = Repository(opened, options, settings.repository)
    if options.workers is not None:
        for bundle in opened:
            _say_hosts(bundle, options.workers)
    what = ", ".join(map(_summary, opened)) or "nothing loaded"
    run(served, settings, lambda urls: typer.echo(f"ready: {' '.join(urls)}  {what}"))


@app.command()
def predict(
    target: Annotated[str, typer.Argument(metavar="BUNDLE|URL", help="A bundle's directory, or a running server.")],
    files: Annotated[list[Path], typer.Argument(help="Images; or numbers as .npy, .npz, .json or .csv rows.")],
    model: Annotated[str | None, typer.Option(help="Which model, where a server has several.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per input instead.")] = False,
) -> None:
    """Classify files with a bundle in this process, or with a server."""
    predictions = _predict(target, files, model)
    if as_json:
        for name, prediction in predictions:
            typer.echo(json.dumps({"input": name, **prediction}))
        return
    from rich.console import Console

    Console().print(_table(predictions))


def _show(settings: list[Described]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("setting", no_wrap=True), "value", Column("from", no_wrap=True), "what it is")
    for setting in settings:
        table.add_row(setting.name, setting.value or "none", setting.origin, setting.help)
    Console().print(table)


def _bundles_in(repository: Path | None) -> list[Path]:
    from sensai_serve.bundle import MANIFEST
    from sensai_serve.errors import InputError

    if repository is None:
        return []
    if not repository.is_dir():
        raise InputError(f"{repository} is no directory, expected one that holds bundles")
    found = sorted(path.parent for path in repository.glob(f"*/{MANIFEST}"))
    return [path for path in found if not path.name.startswith(".")]  # a hidden one is still being written


def _say_hosts(bundle: Bundle, workers: WorkerMap) -> None:
    """Which hosts may be lost, before anything is."""
    from serving.placement.domains import host_lines, hosts_of

    hosts = hosts_of(workers.devices, workers.device_of(bundle.assignment.n_workers))
    for line in host_lines(bundle.assignment, bundle.manifest.labels, hosts):
        typer.echo(f"{bundle.manifest.name}: {line}")


def _summary(bundle: Bundle) -> str:
    manifest = bundle.manifest
    return f"{manifest.name} ({len(manifest.labels)} classes, {len(manifest.subnets)} workers)"


def _predict(target: str, files: list[Path], model: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    from sensai_serve.cli.samples import read_samples
    from sensai_serve.errors import RequestError

    with _remote(target, model) if "://" in target else _local(target) as (shape, classify):
        for path in files:
            for sample in read_samples(path, shape):
                try:
                    yield sample.name, classify(sample)
                except RequestError as error:
                    raise RequestError(f"{sample.name}: {error}") from None


@contextmanager
def _remote(url: str, model: str | None) -> Iterator[tuple[tuple[int, ...], Classify]]:
    from sensai_serve.cli.endpoint import Endpoint

    with closing(Endpoint(url)) as endpoint:
        yield endpoint.shape(model), lambda sample: endpoint.predict(sample, model)


@contextmanager
def _local(path: str) -> Iterator[tuple[tuple[int, ...], Classify]]:
    from sensai_serve import load

    classifier = load(path)

    def classify(sample: Sample) -> dict[str, Any]:
        started = time.perf_counter()
        prediction = classifier.predict(sample.raw)
        milliseconds = {"total": round((time.perf_counter() - started) * 1000, 3)}
        return {**asdict(prediction), "milliseconds": milliseconds}

    yield classifier.manifest.input.shape, classify


def _table(predictions: Iterator[tuple[str, dict[str, Any]]]) -> Table:
    from rich.table import Table

    table = Table("input", "label")
    for heading in ("score", "votes", "margin", "ms", "slowest worker"):
        table.add_column(heading, justify="right")
    for name, prediction in predictions:
        label = prediction["label"]
        workers: dict[str, float] = prediction["milliseconds"].get("workers", {})
        slowest = max(workers.items(), key=lambda item: item[1], default=None)
        table.add_row(
            name,
            (label or "none") + ("" if prediction["elected"] else " (not elected)"),
            f"{prediction['scores'].get(label, 0.0):.3f}",
            str(prediction["votes"].get(label, 0)),
            f"{prediction['margin']:.3f}",
            f"{prediction['milliseconds']['total']:.2f}",
            "" if slowest is None else f"{slowest[0]}: {slowest[1]:.2f} ms",
        )
    return table
