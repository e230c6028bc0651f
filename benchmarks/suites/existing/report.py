"""Tables and plain data of ``sensai bench existing``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from benchmarks.harness.stats import summarise
from benchmarks.reporting import aims
from benchmarks.reporting.aims import Aim
from benchmarks.reporting.cells import from_microseconds, milliseconds, times
from benchmarks.reporting.report import BenchmarkReport
from benchmarks.suites.existing.measure import ExistingResult
from benchmarks.suites.existing.members import ALONE, TOGETHER, MembersResult
from benchmarks.suites.existing.replicas import ALONE as UNDISTURBED
from benchmarks.suites.existing.replicas import DELAY_MS, EVERY_S, ReplicasResult
from sensai_serve.report import Cell, Row, Table

TAIL_AIM, CASCADE_AIM, ANSWER_AIM_S = 1.3, 0.6, 15.0
OURS = "three replicas"


def report(found: ExistingResult) -> BenchmarkReport:
    """The report of what `measure` found."""
    parts = [*_replicas(found), *_members(found), *_table(found)]
    parts.append(Table("What is aimed at", aims.COLUMNS, aims.rows(list(_aims(found))), prose=True))
    settings = asdict(found.options) | {"models": [model.name for model in found.options.models]}
    settings["data"] = None if found.options.data is None else found.options.data.partition(":")[0]
    results = {
        "replicas": None
        if found.replicas is None
        else {
            "servers": found.replicas.subjects,
            "p99_ratio": {name: asdict(one) for name, one in found.replicas.ratios.items()},
            "missing": found.replicas.missing,
        },
        **{name: one.to_json() for name, one in found.members.items()},
        "table": found.table,
        "first_answer": found.first_answer,
    }
    subject = found.options.models[0].stem if found.options.models else "table"
    return BenchmarkReport("existing", subject, found.machine, settings, results, parts)


def _replicas(found: ExistingResult) -> Iterator[Table]:
    if (one := found.replicas) is None:
        return
    rows: list[Row] = []
    for name, figures in one.subjects.items():
        latency = figures["latency_us"]
        cells = [Cell("")] * 3 if latency is None else [
            milliseconds(from_microseconds(latency["quantiles_us"][q])) for q in ("p50", "p99", "p99.9")
        ]  # fmt: skip
        failed = f"{figures['failed']:,} of {figures['requests']:,}"
        rows.append((name, failed, str(figures["wrong"]), str(figures["kills"]), *cells, times(one.ratios.get(name))))
    rows += [(name, f"not measured: {why}") + ("",) * 6 for name, why in one.missing.items()]
    columns = ("", "failed", "other label", "kills", "p50", "p99", "p99.9", "p99 / undisturbed")
    note = (
        f"Milliseconds, {found.options.rate:g} requests a second at Poisson arrivals. Of three replicas one takes "
        f"{DELAY_MS:g} ms longer, and the process of another is killed every {EVERY_S:g} s. Latencies are of answered "
        "requests; those of the last column of all, failed ones too. Triton's ensemble waits for its slowest step."
    )
    yield Table("Replicas of one file", columns, rows, note)


def _members(found: ExistingResult) -> Iterator[Table]:
    for name, one in found.members.items():
        accuracy, own = one.accuracy, one.bundle.manifest
        rows: list[Row] = [
            (f"right: {file['file']}", f"{right:.2%}")
            for file, right in zip(own.provenance["files"], accuracy["members"], strict=True)
        ]
        rows.append(("right: all merged", f"{accuracy['test']:.2%}"))
        for lost, words in (("one_lost", "one lost"), ("two_lost", "two lost")):
            if name == "ensemble" and lost in accuracy:
                mean, worst = accuracy[lost]["mean"], accuracy[lost]["worst"]
                rows.append((f"right: {words}, mean and worst", f"{mean:.2%}, {worst:.2%}"))
        if "cascade" in accuracy:
            rows.append(("right: asked in turn", f"{accuracy['cascade']:.2%}"))
        rows += [
            ("right: of the inputs that were sent", f"{one.right:.2%}"),
            ("files that an answer was made of, mean", f"{one.asked:.2f}"),
            *((f"{who}: mean, p50, p99, ms", _three(one, who)) for who in (ALONE, TOGETHER)),
            ("mean, over the most expensive file's", f"{one.mean:.2f}x"),
            ("p50, over the most expensive file's", times(one.median)),
        ]
        where = "one core" if name == "cascade" else "all cores"
        note = f"Accuracy on {accuracy['test_inputs']:,} inputs, by choices that they had no part in. HTTP, {where}."
        yield Table(f"{name.capitalize()} of existing files, merged by {own.merge.rule}", ("", ""), rows, note)


def _three(one: MembersResult, who: str) -> str:
    summary = summarise([seconds for times in one.times[who] for seconds in times])
    values = (summary.mean, summary.quantiles["p50"].value, summary.quantiles["p99"].value)
    return ", ".join(f"{1e3 * value:.3g}" for value in values)


def _table(found: ExistingResult) -> Iterator[Table]:
    if (one := found.table) is None:
        return
    rows: list[Row] = [
        (f"{name} alone, offline", f"{right:.2%}", "", "", "")
        for name, right in zip(("random forest", "gradient-boosted trees"), one["accuracy"]["members"], strict=True)
    ]
    rows.append(("merged, offline", f"{one['accuracy']['test']:.2%}", "", "", ""))
    for what, figures in one["served"].items():
        latency = figures["latency_us"]
        p50 = "" if latency is None else f"{latency['quantiles_us']['p50']['value'] / 1e3:.3g}"
        cells = (f"{figures['right']:.2%}", str(figures["failed"]), f"{figures['members']:.2f}", p50)
        rows.append((f"served, {what}", *cells))
    note = f"Breast cancer (Wisconsin): 30 numbers a row; trained on one half, asked {one['inputs']} rows of the other."
    yield Table("Trees as an ensemble", ("", "right", "failed", "members", "p50, ms"), rows, note)


def _aims(found: ExistingResult) -> Iterator[Aim]:
    if (one := found.replicas) is not None:
        yield from _aims_of_replicas(one)
    if (both := found.members.get("cascade")) is not None:
        best = max(both.accuracy["members"])
        lost = best - both.accuracy["cascade"]
        yield Aim(
            f"cascade: at most {CASCADE_AIM} of the time of the expensive file, on one core",
            f"{both.mean:.2f}x, {100 * lost:.2f} points below the best file",
            both.mean <= CASCADE_AIM and lost <= found.options.loss / 100 + 1e-9,
        )
    if (every := found.members.get("ensemble")) is not None:
        best, merged = max(every.accuracy["members"]), every.accuracy["test"]
        yield Aim("ensemble: better than its best member", f"{merged:.2%}, the best alone {best:.2%}", merged > best)
    if found.table is not None:
        failed = sum(figures["failed"] for figures in found.table["served"].values())
        yield Aim("table: no failed request, with either member lost", str(failed), failed == 0)
    if found.first_answer is not None:
        seconds = found.first_answer["answer_s"]
        said = f"{seconds:.1f} s, of which the bundle {found.first_answer['bundle_s']:.1f} s"
        yield Aim(f"from the file to the first answer: {ANSWER_AIM_S:g} s", said, seconds <= ANSWER_AIM_S)


def _aims_of_replicas(one: ReplicasResult) -> Iterator[Aim]:
    ours = {name: figures for name, figures in one.subjects.items() if name.startswith(OURS)}
    failed = ", ".join(f"{name}: {figures['failed']} of {figures['requests']:,}" for name, figures in ours.items())
    wrong = sum(figures["wrong"] for figures in ours.values())
    yield Aim("replicas: no failed request", failed, all(figures["failed"] == 0 for figures in ours.values()))
    yield Aim("replicas: every label is the network's", f"{wrong} differ", wrong == 0)
    best = min(ours, key=lambda name: one.ratios[name].value)
    value = one.ratios[best].value
    yield Aim(
        f"replicas: p99 at most {TAIL_AIM} times that of {UNDISTURBED}", f"{value:.2f}x ({best})", value <= TAIL_AIM
    )
