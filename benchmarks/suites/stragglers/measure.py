"""Runs the cases of `benchmarks.suites.stragglers.cases` one after the other, and reports what they found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.harness import machine
from benchmarks.reporting import aims
from benchmarks.reporting.report import BenchmarkReport
from benchmarks.suites.stragglers.cases import CASES, CaseResult, Context
from sensai_serve.errors import InputError, ServingError
from sensai_serve.plugins import available, find
from sensai_serve.progress import OnProgress
from sensai_serve.report import Picture, Row, Table

PACKAGE = "benchmarks.suites.stragglers.cases"


def measure(context: Context, cases: Sequence[str], on_step: OnProgress) -> BenchmarkReport:
    """Run cases one after the other.

    Args:
        context: what they work with.
        cases: names of cases, or ``package.module:callable``; all where empty.
        on_step: hears of progress.

    Raises:
        InputError: there is no such case.
        PluginError: a case of another package cannot be imported.
        ServingError: a server does not start.
    """
    known = [*CASES, *(name for name in available(PACKAGE) if name not in CASES)]
    elsewhere = [name for name in cases if ":" in name]
    if unknown := set(cases) - {*known, *elsewhere}:
        raise InputError(f"--case is {min(unknown)!r}, expected {', '.join(known)} or package.module:callable")
    described, findings = machine.describe(), {}
    chosen = [name for name in known if not cases or name in cases] + elsewhere
    runs = {name: find(PACKAGE, name, "run") for name in chosen}
    for done, (name, run) in enumerate(runs.items()):
        on_step(f"stragglers: {name}", 0, 1)
        try:
            findings[name] = run(context)
        except ServingError as error:
            raise ServingError(f"case {name}: {error}") from None
        on_step(f"stragglers: {name}", 1, 1)
        on_step("cases", done + 1, len(chosen))
    return report(context, findings, described)


def report(context: Context, findings: dict[str, CaseResult], described: dict[str, object]) -> BenchmarkReport:
    """The table of all cases, and their pictures."""
    rows: list[Row] = []
    for finding in findings.values():
        rows.append((finding.case,))
        rows += aims.rows(finding.aims)
    pictures: list[Picture] = [picture for finding in findings.values() for picture in finding.pictures]
    n = len(context.data.inputs)
    note = f"{n} inputs; every label held against the offline merge of the copies that its reply lists."
    return BenchmarkReport(
        "stragglers",
        context.bundle.manifest.name,
        described,
        {**asdict(context.options), "inputs": n, "labelled": context.data.labels is not None},
        {
            name: {
                "case": finding.case,
                "aims": [asdict(aim) for aim in finding.aims],
                "measured": finding.results,
            }
            for name, finding in findings.items()
        },
        [Table("Slow, dead and wrong workers", aims.COLUMNS, rows, note, prose=True), *pictures],
    )
