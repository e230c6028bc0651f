"""``sensai serve``: a server of bundles, and the settings that it takes."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sensai_serve.cli.ahead import first_trial
from sensai_serve.cli.options import takes

if TYPE_CHECKING:
    from sensai_serve.bundles import Bundle
    from sensai_serve.options import Option
    from serving.placement.worker_map import WorkerMap
    from serving.settings import Described

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
