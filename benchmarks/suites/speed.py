"""The promised figures of speed, each out of the latest kept run of scale, peers or latency that has it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness import machine as machines
from benchmarks.options import RESULTS
from sensai_serve.bundles import atomic_file
from sensai_serve.errors import DataError

FILE = "speed.md"
BEGIN, END = "<!-- begin of what `sensai bench speed --readme` writes -->\n", "<!-- end of it -->\n"
QUOTED = ("scale", "peers", "latency")
"""Benchmarks whose runs the figures come from."""
TINY = "noop"
"""The subject of runs with networks that compute nothing."""


@dataclass(frozen=True)
class SpeedFigure:
    """One figure that is promised: its aim, and what was measured."""

    what: str
    aim: str
    value: float | None
    """None where no kept run has it."""
    unit: str
    low: float | None
    high: float | None
    holds: bool | None

    def cells(self) -> tuple[str, str, str, str]:
        """The cells of a table: figure, aim, measured value, whether the aim holds."""
        if self.value is None:
            return self.what, self.aim, "not measured", ""
        interval = "" if self.low is None or self.high is None else f" ({self.low:.2f}-{self.high:.2f})"
        return self.what, self.aim, f"{self.value:.2f}{self.unit}{interval}", "yes" if self.holds else "no"


class KeptRuns:
    """The ``result.json`` files under a directory."""

    def __init__(self, directory: Path) -> None:
        """Read all runs.

        Raises:
            DataError: there are none, or one is damaged.
        """
        self._runs: list[dict[str, Any]] = []
        for path in sorted(directory.glob("*/result.json")):
            try:
                self._runs.append(json.loads(path.read_text()))
            except ValueError:
                raise DataError(f"{path} is not JSON") from None
        if not self._runs:
            raise DataError(f"{directory} holds no runs, expected directories with result.json")

    def of(self, bench: str, *, tiny: bool) -> Iterator[dict[str, Any]]:
        """Results of a benchmark, of no-op networks or of real ones, the latest first."""
        for run in sorted(self._runs, key=lambda run: str(run["machine"]["date"]), reverse=True):
            if run["bench"] == bench and (run["subject"] == TINY) == tiny:
                yield run["results"]

    def machine(self) -> str:
        """The machine of the latest run that figures come from."""
        quoted = [run["machine"] for run in self._runs if run["bench"] in QUOTED]
        return machines.in_words(max(quoted, key=lambda m: str(m["date"]))) if quoted else ""


def command(
    results: Annotated[Path, typer.Argument(metavar="DIR", help="Directory with the kept runs.")] = RESULTS,
    *,
    readme: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Page that quotes the table: its copy is replaced.")
    ] = None,
) -> None:
    """Print the promised figures of speed out of the kept runs, and write them to speed.md beside the runs."""
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "aim", "measured", "holds")
    for figure in write(KeptRuns(results), results, readme):
        table.add_row(*figure.cells())
    Console().print(table)
    typer.echo(f"{results / FILE}")


def figures(runs: KeptRuns) -> list[SpeedFigure]:
    """All promised figures, in the order of the table."""
    scale = next(runs.of("scale", tiny=True), {}).get("ratios", {})
    tiny = next(runs.of("peers", tiny=True), {})
    real = next(runs.of("peers", tiny=False), {})
    latency = next(runs.of("latency", tiny=False), {})
    whole = latency.get("ratios", {}).get("reference / class-parallel", {}).get("HTTP binary", {}).get("p50")
    lean = "lean client"
    return [
        _at_most(4.5, "one no-op worker / empty server, both on the client's core", scale.get(
            "one no-op worker / empty server, both on the client's core")),
        _at_most(1.5, "ten no-op workers, fused / one, both on the client's core", scale.get(
            "10 no-op workers, fused / one, both on the client's core")),
        _at_least(1.5, "FastAPI, raw body / ours, tiny network", _peer(tiny, "FastAPI", "raw body", lean)),
        _at_least(2, "Triton, Python backend, v2 binary / ours, tiny network",
                  _peer(tiny, "Triton, Python backend", "v2 binary", lean)),
        *(_at_least(5, f"{peer}, its fastest route / ours, tiny network", _fastest(tiny, peer, fan_out=False))
          for peer in ("MLServer", "BentoML", "LitServe", "Ray Serve")),
        *(_at_least(1.3, f"{client}: Triton / ours", _peer(tiny, "Triton, Python backend", "v2 binary", client))
          for client in ("tritonclient HTTP", "tritonclient gRPC")),
        _at_least(1.1, "tritonclient gRPC: Triton / ours over grpc-native",
                  _peer(tiny, "Triton, Python backend", "v2 binary", "tritonclient gRPC", "ratio_p50_native")),
        _at_least(5, "ten tiny subnets: Triton's ensemble / ours",
                  _peer(tiny, "Triton, Python backend", "v2 binary, ensemble", lean)),
        _at_least(1.2, "ten tiny subnets: FastAPI in a loop / ours",
                  _peer(tiny, "FastAPI", "raw body, in a loop", lean)),
        _at_most(2, "fan-out alone: W = 10 / W = 1, in process", scale.get("10 no-op workers / 1, in process")),
        _at_most(3, "W = 64 / W = 8, HTTP binary", scale.get("64 no-op workers / 8, HTTP binary")),
        _at_least(3, "reference at its fastest / class-parallel, HTTP binary, same cores", whole),
        _at_most(1.5, "memory: ours / FastAPI with the reference", _memory(real)),
        _at_most(3, "start to ready", _ready(real), " s"),
    ]  # fmt: skip


def write(runs: KeptRuns, directory: Path, quoted_in: Path | None = None) -> list[SpeedFigure]:
    """Write the table as Markdown beside the runs.

    Args:
        runs: the kept runs.
        directory: the directory of the runs; the table becomes ``speed.md`` in it.
        quoted_in: a page that quotes the table, between two comments that say so; what stands there is replaced.

    Raises:
        DataError: the page has no such place.
    """
    found = figures(runs)
    lines = ["| figure | aim | measured | holds |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(figure.cells())} |" for figure in found]
    lines += ["", f"{runs.machine()}. Ratios of medians, 95% intervals."]
    table = "\n".join(lines) + "\n"
    if quoted_in is not None:
        before, begin, rest = quoted_in.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise DataError(f"{quoted_in} has no place for the table, expected {BEGIN.strip()} and {END.strip()}")
        with atomic_file(quoted_in) as temporary:
            temporary.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")
    with atomic_file(directory / FILE) as temporary:
        temporary.write_text(table, encoding="utf-8")
    return found


def _peer(
    results: Mapping[str, Any], peer: str, setup: str, client: str, figure: str = "ratio_p50"
) -> Mapping[str, Any] | None:
    for one in results.get("compared", ()):
        if (one["peer"], one["setup"], one["client"]) == (peer, setup, client):
            ratio: Mapping[str, Any] | None = one.get(figure)
            return ratio
    return None


def _fastest(results: Mapping[str, Any], peer: str, *, fan_out: bool) -> Mapping[str, Any] | None:
    found = [one["ratio_p50"] for one in results.get("compared", ())
             if one["peer"] == peer and one["fan_out"] == fan_out]  # fmt: skip
    return min(found, key=lambda ratio: float(ratio["value"]), default=None)


def _memory(results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    theirs = [one["memory_bytes"] for one in results.get("compared", ())
              if (one["peer"], one["setup"]) == ("FastAPI", "raw body")]  # fmt: skip
    return {"value": results["ours"]["fan-out"]["memory_bytes"] / theirs[0]} if theirs else None


def _ready(results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return {"value": results["ours"]["fan-out"]["ready_s"]} if "ours" in results else None


def _at_most(limit: float, what: str, found: Mapping[str, Any] | None, unit: str = "x") -> SpeedFigure:
    return _figure(what, f"<= {limit:g}{unit}", found, unit, lambda value: value <= limit)


def _at_least(limit: float, what: str, found: Mapping[str, Any] | None) -> SpeedFigure:
    return _figure(what, f">= {limit:g}x", found, "x", lambda value: value >= limit)


def _figure(
    what: str, aim: str, found: Mapping[str, Any] | None, unit: str, holds: Callable[[float], bool]
) -> SpeedFigure:
    if found is None:
        return SpeedFigure(what, aim, None, unit, None, None, None)
    value = float(found["value"])
    return SpeedFigure(what, aim, value, unit, found.get("low"), found.get("high"), holds(value))
