"""Many models under a budget for a few of them: how many requests find their model in memory, and what others take."""

from __future__ import annotations

import re
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from benchmarks.harness import machine, servers
from benchmarks.harness.stats import summarise
from benchmarks.options import Out, Quiet, publish
from benchmarks.reporting.report import BenchmarkReport
from benchmarks.subjects import our_server
from benchmarks.subjects.noop import noop_bundle
from sensai_serve.bundles import Bundle
from sensai_serve.byte_sizes import show_bytes
from sensai_serve.cli.progress import progress
from sensai_serve.progress import OnProgress
from sensai_serve.report import Row, Table
from serving.engine.options import GatewayOptions
from serving.engine.resident import bytes_of
from serving.runtime.devices import parse_device

SHAPE = (3, 32, 32)
SKEW = 1.1
"""Exponent of Zipf's law: the k-th most popular model is asked for in proportion to k to the power of minus this."""
BATCH = 1
_HELD = re.compile(rb"^sensai_memory_held_bytes (\S+)$", re.MULTILINE)


def command(
    *,
    bundles: Annotated[int, typer.Option(min=2, help="Bundles in the repository, three workers each.")] = 100,
    fit: Annotated[int, typer.Option(min=1, help="Bundles that fit in memory at a time.")] = 10,
    requests: Annotated[int, typer.Option(min=20, help="Requests to each server.")] = 2000,
    width: Annotated[int, typer.Option(min=1, help="Neurons in a layer of each worker's two.")] = 512,
    seed: Annotated[int, typer.Option(help="Seed of which model is asked for.")] = 0,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Measure a repository under a budget of memory for some of its models, beside one that holds all of them."""
    with tempfile.TemporaryDirectory() as folder, progress(quiet=quiet) as on_step:
        for number in range(bundles):
            name = f"noop-{number}"
            noop_bundle(Path(folder) / name, n_workers=3, shape=SHAPE, name=name, width=width)
        found = measure(Path(folder), fit=fit, requests=requests, seed=seed, on_step=on_step)
    publish(report(found), out)


def measure(
    repository: Path,
    *,
    fit: int,
    requests: int,
    seed: int = 0,
    on_step: OnProgress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Send the same requests to a server with a budget and to one without, one after the other.

    Args:
        repository: bundles of one size.
        fit: bundles that fit in the budget.
        requests: requests to each server.
        seed: of which model is asked for.
        on_step: hears of progress.

    Returns:
        The machine, the settings, and of each server the seconds of every request, which of them found their model in
        memory, failed requests, and the most bytes that were held: as the server counts them, and by its processes.

    Raises:
        ServingError: a server does not start.
    """
    described = machine.describe()
    names = sorted(path.name for path in repository.iterdir())
    options = GatewayOptions(devices=(parse_device("cpu"),), max_batch=BATCH)
    budget = fit * bytes_of(Bundle.open(repository / names[0]), options, fused=True)
    shares = np.arange(1, len(names) + 1) ** -SKEW
    asked = np.random.default_rng(seed).choice(len(names), requests, p=shares / shares.sum()).tolist()
    found = {}
    for way, flags in (("with a budget", ("--memory", str(budget))), ("all in memory", ())):
        port = servers.free_port()
        command = ("--repository", str(repository), "--max-batch", str(BATCH), *flags)
        with servers.running(our_server.spec(*command, port=port, name=way)) as server:
            found[way] = _ask(port, names, asked, server.memory_bytes, partial(on_step, way))
    files = sum(file.stat().st_size for file in repository.glob("*/subnets/*"))
    settings: dict[str, Any] = {"bundles": len(names), "file_bytes": files, "fit": fit, "budget_bytes": budget}
    settings |= {"requests": requests, "skew": SKEW}
    return {"machine": described, "settings": settings, "servers": found}


def _ask(
    port: int, names: list[str], asked: list[int], memory: Callable[[], int], on_step: Callable[[int, int], None]
) -> dict[str, Any]:
    client = triton.InferenceServerClient(f"{servers.HOST}:{port}", network_timeout=60)
    given = triton.InferInput("input", [1, *SHAPE], "FP32")
    given.set_data_from_numpy(np.zeros((1, *SHAPE), np.float32))
    seconds, warm, failed, most_held, most_memory = [], [], 0, 0.0, memory()
    cold = dict.fromkeys(names, 0.0)  # requests so far that came while their model was not in memory
    for done, number in enumerate(asked, 1):
        name = names[number]
        started = perf_counter()
        try:
            client.infer(name, [given])
        except InferenceServerException:
            failed += 1
        seconds.append(perf_counter() - started)
        text = _metrics(port)
        before, cold[name] = cold[name], _cold_requests(text, name)
        warm.append(cold[name] == before)
        if (held := _HELD.search(text)) is not None:
            most_held = max(most_held, float(held[1]))
        if done % 10 == 0:
            most_memory = max(most_memory, memory())
            on_step(done, len(asked))
    return {
        "seconds": seconds,
        "warm": warm,
        "failed": failed,
        "most_held_bytes": int(most_held),
        "memory_bytes": most_memory,
    }


def _cold_requests(text: bytes, name: str) -> float:
    match = re.search(rb'^sensai_cold_requests_total\{model="%s"\} (\S+)$' % name.encode(), text, re.MULTILINE)
    return 0.0 if match is None else float(match[1])


def _metrics(port: int) -> bytes:
    with urllib.request.urlopen(f"http://{servers.HOST}:{port}/metrics") as reply:
        text: bytes = reply.read()
    return text


def report(found: Mapping[str, Any]) -> BenchmarkReport:
    """The report of what `measure` found."""
    settings = found["settings"]
    rows: list[Row] = []
    results: dict[str, Any] = {}
    for way, of in found["servers"].items():
        seconds, warm = np.array(of["seconds"]), np.array(of["warm"])
        parts = {"warm": seconds[warm], "cold": seconds[~warm]}
        summaries = {name: summarise(part) for name, part in parts.items() if len(part)}
        times = [
            f"{1000 * summaries[name].p50:.2f}, {1000 * summaries[name].p99:.2f}" if name in summaries else ""
            for name in parts
        ]
        held = show_bytes(of["most_held_bytes"]) if of["most_held_bytes"] else ""
        rows.append((way, str(of["failed"]), f"{warm.mean():.1%}", *times, held, show_bytes(of["memory_bytes"])))
        results[way] = (
            {name: summary.to_json() for name, summary in summaries.items()}
            | {name: of[name] for name in ("failed", "most_held_bytes", "memory_bytes")}
            | {"hit_rate": float(warm.mean())}
        )
    headings = (
        "",
        "failed",
        "in memory",
        "p50, p99 ms",
        "loaded first: p50, p99 ms",
        "counted at most",
        "processes at most",
    )
    sizes = {name: show_bytes(settings[f"{name}_bytes"]) for name in ("file", "budget")}
    note = (
        f"{settings['bundles']} bundles ({sizes['file']} of networks), a budget for {settings['fit']} "
        f"({sizes['budget']}), {settings['requests']} requests by Zipf's law with exponent {SKEW}, one at a time over "
        "HTTP."
    )
    table = Table("Models under a budget of memory", headings, rows, note)
    return BenchmarkReport("memory-budget", "noop", found["machine"], settings, results, [table])
