"""``sensai serve`` and ``sensai predict``."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sensai_serve.cli.ahead import first_trial
from sensai_serve.cli.options import takes

if TYPE_CHECKING:
    from rich.table import Table

    from sensai_serve.bundles import Bundle
    from sensai_serve.cli.samples import Sample
    from sensai_serve.input_spec import InputSpec
    from sensai_serve.options import Option
    from sensai_serve.text_spec import TokenizerSpec
    from serving.placement.worker_map import WorkerMap
    from serving.settings import Described

Classify = Callable[["Sample"], dict[str, Any]]
SHOWN = 40
"""Characters of a text that stand for it in tables."""

app = typer.Typer()


def _settings_options() -> tuple[Option, ...]:
    from serving.settings import settings_options

    return settings_options()


@app.command()
@takes(_settings_options)
def serve(
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="BUNDLE...", help="Bundles: directories, or example:cifar10.")
    ] = None,
    *,
    settings_file: Annotated[
        Path | None, typer.Option("--settings", help="A TOML file of settings; flags and the environment win over it.")
    ] = None,
    show_settings: Annotated[
        bool, typer.Option("--show-settings", help="Print every setting and where it comes from, and exit.")
    ] = False,
    **options: Any,
) -> None:
    """Serve bundles over HTTP until SIGTERM. Every option is also a variable of the environment, SENSAI_..."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its library would write lines of its own to stderr
    gc.disable()  # until the transports listen: imports free nothing, and collections would take a fifth of the time
    try:
        _serve(bundles or [], settings_file, show_settings, options)
    finally:
        gc.enable()


def _serve(bundles: list[Path], settings_file: Path | None, show_settings: bool, options: dict[str, Any]) -> None:
    from sensai_serve.bundles import Bundle
    from sensai_serve.errors import InputError
    from sensai_serve.merge.rules import allow
    from serving.engine.repository import Repository
    from serving.server import run
    from serving.settings import describe_settings, load_settings
    from serving.telemetry.stderr import capture_stderr

    flags = _grouped(options)
    if show_settings:
        _show(describe_settings(settings_file, **flags))
        return
    if "json" in (options.get("log_format"), os.environ.get("SENSAI_LOG_FORMAT")):
        capture_stderr()  # before anything that can go wrong
    settings = load_settings(settings_file, **flags)
    if settings.log_format == "json":
        capture_stderr()
    for rule in settings.merge_rules:
        allow(rule)
    opened = [Bundle.open(path) for path in bundles]
    if not opened and settings.repository is None:
        raise InputError("nothing to serve, expected directories of bundles or --repository")
    if settings.repository is not None and not settings.repository.is_dir():
        raise InputError(f"{settings.repository} is not a directory, expected one that holds bundles")
    served_as = settings.gateway_options()
    served = Repository(
        opened,
        served_as,
        settings.repository,
        whole=True,
        strict_readiness=settings.strict_readiness,
        memory=settings.memory,
        cold=settings.cold,
        first_trial=first_trial(),
    )

    def on_ready(urls: Sequence[str]) -> None:
        if served_as.workers is not None:
            for bundle in served.served:
                _say_hosts(bundle, served_as.workers)
        what = ", ".join(map(_summary, served.served)) or "nothing loaded"
        typer.echo(f"ready: {' '.join(urls)}  {what}")

    run(served, settings, on_ready)


@app.command()
def predict(
    target: Annotated[
        str,
        typer.Argument(metavar="BUNDLE|URL", help="A bundle: a directory, or example:cifar10; or a running server."),
    ],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Images; texts, where the bundle has a tokenizer; or numbers as .npy, .npz, .json or .csv rows."
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text to classify, where the bundle has a tokenizer; may be repeated.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which model, where a server has several.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file that holds the token that a server asks for.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per input instead.")] = False,
    merge_rule: Annotated[
        list[str] | None,
        typer.Option(metavar="package.module:callable", help="A merge rule of one's own that the bundle may name."),
    ] = None,
) -> None:
    """Classify files or texts with a bundle in this process, or with a server."""
    from sensai_serve.errors import InputError
    from sensai_serve.merge.rules import allow

    if not files and not text:
        raise InputError("nothing to classify, expected files or --text")

    for rule in merge_rule or ():
        allow(rule)
    predictions = _predict(target, files or [], text or [], model, token_file)
    if as_json:
        for name, prediction in predictions:
            typer.echo(json.dumps({"input": name, **prediction}))
        return
    from rich.console import Console

    Console().print(_table(predictions))


def _grouped(options: dict[str, Any]) -> dict[str, Any]:
    """Options whose names have a group before a dot, as a dictionary of each group."""
    flags: dict[str, Any] = {}
    for name, value in options.items():
        *groups, own = name.split(".")
        inner = flags
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[own] = value
    return flags


def _show(settings: list[Described]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    # In a narrow terminal the longest names and values are folded, or they would leave no room for the others.
    longest, widest, help_width = (34, 10, max(8, console.width - 64)) if console.width < 140 else (None, None, None)
    table = Table(
        Column("setting", overflow="fold", min_width=longest, max_width=longest),
        Column("value", overflow="fold", max_width=widest),
        Column("from", no_wrap=True),
        Column("what it is", max_width=help_width),
    )
    for setting in settings:
        table.add_row(setting.name, setting.value or "none", setting.origin, setting.help)
    console.print(table)


def _say_hosts(bundle: Bundle, workers: WorkerMap) -> None:
    """Which hosts may be lost, before anything is."""
    from serving.placement.domains import host_lines, hosts_of

    hosts = hosts_of(workers.devices, workers.device_of(bundle.assignment.n_workers))
    for line in host_lines(bundle.assignment, bundle.manifest.labels, hosts):
        typer.echo(f"{bundle.manifest.name}: {line}")


def _summary(bundle: Bundle) -> str:
    manifest = bundle.manifest
    return f"{manifest.name} ({len(manifest.labels)} classes, {len(manifest.subnets)} workers)"


def _predict(
    target: str, files: list[Path], texts: list[str], model: str | None, token_file: Path | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    from itertools import chain

    from sensai_serve.cli.samples import read_samples, text_sample
    from sensai_serve.errors import RequestError

    with _remote(target, model, token_file) if "://" in target else _local(target) as (specs, tokenizer, classify):
        if texts and tokenizer is None:
            raise RequestError("--text: this model has no tokenizer, expected files of what it takes")
        samples = chain(
            (text_sample(_short(text), text) for text in texts),
            *(read_samples(path, specs, texts=tokenizer is not None) for path in files),
        )
        for sample in samples:
            try:
                yield sample.name, classify(sample)
            except RequestError as error:
                raise RequestError(f"{sample.name}: {error}") from None


def _short(text: str) -> str:
    """A text as a name, on one line."""
    line = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."


_Opened = tuple["Sequence[InputSpec]", "TokenizerSpec | None", Classify]
"""What a model takes, what it makes of texts, and what classifies an input."""


@contextmanager
def _remote(url: str, model: str | None, token_file: Path | None) -> Iterator[_Opened]:
    from sensai_serve.cli.endpoint import Endpoint
    from serving.runtime.endpoint import Security

    with closing(Endpoint(url, token=Security(token_file=token_file).token())) as endpoint:
        yield *endpoint.inputs(model), lambda sample: endpoint.predict(sample, model)


@contextmanager
def _local(path: str) -> Iterator[_Opened]:
    from sensai_serve import load

    classifier = load(path)

    def classify(sample: Sample) -> dict[str, Any]:
        started = time.perf_counter()
        of = classifier.predict if classifier.manifest.task == "single" else classifier.predict_labels
        prediction = of(sample.raw)
        milliseconds = {"total": round((time.perf_counter() - started) * 1000, 3)}
        return {**asdict(prediction), "milliseconds": milliseconds}

    yield classifier.manifest.inputs, classifier.manifest.tokenizer, classify


def _table(predictions: Iterator[tuple[str, dict[str, Any]]]) -> Table:
    from rich.table import Table

    table = Table("input", "label")
    for heading in ("score", "votes", "margin", "ms", "slowest worker"):
        table.add_column(heading, justify="right")
    for name, prediction in predictions:
        label, score, votes = _answered(prediction)
        workers: dict[str, float] = prediction["milliseconds"].get("workers", {})
        slowest = max(workers.items(), key=lambda item: item[1], default=None)
        table.add_row(
            name,
            label,
            score,
            votes,
            f"{prediction['margin']:.3f}",
            f"{prediction['milliseconds']['total']:.2f}",
            "" if slowest is None else f"{slowest[0]}: {slowest[1]:.2f} ms",
        )
    return table


def _answered(prediction: dict[str, Any]) -> tuple[str, str, str]:
    """Label, score and votes of a prediction; of several labels at once all of them, side by side."""
    found = prediction.get("labels")
    if found is None:
        label = prediction["label"]
        elected = "" if prediction["elected"] else " (not elected)"
        score, votes = prediction["scores"].get(label, 0.0), prediction["votes"].get(label, 0)
        return f"{label or 'none'}{elected}", f"{score:.3f}", str(votes)
    names = [one["label"] for one in found]
    doubtful = ", ".join(prediction["undecided"])
    shown = (", ".join(names) or "none") + (f" (undecided: {doubtful})" if doubtful else "")
    scores, votes_of = (f"{one['score']:.3f}" for one in found), (str(prediction["votes"][name]) for name in names)
    return shown, ", ".join(scores), ", ".join(votes_of)
