"""``sensai compare``: does class parallelism earn its place beside one pruned network of the same latency?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sensai_serve.cli.options import Quiet, select, takes
from sensai_serve.cli.progress import progress
from sensai_serve.errors import InputError
from sensai_serve.progress import OnProgress

if TYPE_CHECKING:
    from benchmarks.compare.measure import Candidate
    from export.comparison import PointResult
    from pruning.comparison.builder import PointBuilder
    from pruning.comparison.points import Point
    from sensai_serve.options import Option

app = typer.Typer()
SAMPLES = 32
"""Inputs that networks are timed on."""


def _shared_options() -> tuple[Option, ...]:
    from pruning.recipe import BEST_RULE, recipe_options

    chosen = select(recipe_options(), "data", "model", "grouping", "uneven", "merge", "downsample", "criterion",
                    "depth", "head", "views", "recover_rate", "rate", "joint_rate", "joint_own", "optimiser",
                    "batch", "seed")  # fmt: skip
    return tuple(replace(one, default=BEST_RULE) if one.name == "merge" else one for one in chosen)


@app.command()
@takes(_shared_options, complete=True)
def compare(
    *,
    weights: Annotated[Path, typer.Option(help="The reference's weights, as for prune.")],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Directory for all networks and the report. A run that was ended goes on there."
        ),
    ],
    macs: Annotated[str, typer.Option(help="Sizes to compare: fractions of the reference's MACs.")] = "0.05,0.1,0.25",
    passes: Annotated[int, typer.Option(min=1, help="Image passes of a network, or of all networks of a point.")],
    budget: Annotated[str, typer.Option(help="per-network | total | both")] = "both",
    share: Annotated[
        float, typer.Option(help="Share of the image passes for the network that all workers start from.")
    ] = 0.75,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Workers of all but the grouped point.", show_default="as many as divide the classes, at most 10"
        ),
    ] = None,
    groups: Annotated[
        int | None,
        typer.Option(help="Groups of the grouped point.", show_default="the next fewer that divide the classes"),
    ] = None,
    redundancy: Annotated[
        str | None,
        typer.Option(
            metavar="1,3,full",
            help="Copies of every class, a point each; full: as many as workers.",
            show_default="1,3,5,full as far as there are workers",
        ),
    ] = None,
    recoveries: Annotated[
        int,
        typer.Option(min=1, help="Add points with copies whose workers start from so many shared networks."),
    ] = 1,
    joint_share: Annotated[
        float,
        typer.Option(help="Add points with copies that spend this share of the passes on joint retraining."),
    ] = 0.0,
    summed_monolith: Annotated[
        bool, typer.Option(help="For each size, add a monolith trained on the passes of all networks of a point.")
    ] = True,
    quantised_reference: Annotated[
        bool, typer.Option(help="Add the reference in eight bits: what is gained without any training.")
    ] = True,
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL:WEIGHTS|NAME=FILE.onnx",
            help="Network to compare with; repeat for several. Add ?mean=..&std=.. where it has its own normalisation.",
        ),
    ] = None,
    requests: Annotated[
        int, typer.Option(min=20, help="Requests timed on each network, equally many in each round.")
    ] = 200,
    rounds: Annotated[int, typer.Option(min=3, help="Rounds; in each, all networks take their turns.")] = 20,
    jobs: Annotated[int | None, typer.Option(min=1, help="Subnets to make at a time, as for prune.")] = None,
    device: Annotated[str, typer.Option(help="Device that torch computes on.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of torch.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the points and their passes; make none.")] = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Compare a reference with monoliths and class-parallel networks: accuracy against per-device latency.

    All are pruned and distilled by one recipe, for equal image passes. Choices are the recipe's; the test part is
    used once for each point, after all are made.
    """
    from rich.console import Console

    from benchmarks.compare.measure import ComparisonOptions, measure
    from benchmarks.compare.report import report as report_of
    from benchmarks.reporting.report import show, write
    from pruning.comparison.builder import PointBuilder
    from pruning.comparison.points import points, sweep_for
    from pruning.data import absolute
    from pruning.executors import make_slots
    from pruning.planning.plan import make_plan
    from pruning.recipe import BEST_RULE, Recipe
    from pruning.training.loop import require_device
    from sensai_serve.options import import_plugins
    from sensai_serve.preprocess import normalise

    base = Recipe(**{"merge": BEST_RULE} | options | {"data": absolute(options["data"])})
    import_plugins(base)
    require_device(device)
    plan = make_plan(base, weights, device=device, threads=threads)
    amounts = _numbers(macs)
    sweep = sweep_for(plan.dataset.n_classes, amounts, passes, budget=budget, share=share, workers=workers,
                      groups=groups, redundancies=redundancy and redundancy.split(","), recoveries=recoveries,
                      joint_share=joint_share, summed=summed_monolith)  # fmt: skip
    every = points(base, plan.dataset.n_classes, sweep, len(plan.train))
    if dry_run:
        _print_points(every)
        return
    builder = PointBuilder(plan, out / "points", make_slots(jobs, [device], threads))
    with progress(quiet=quiet) as report:
        entries = _entries(builder, every, point or [], weights, report, eight_bits=quantised_reference)
        dataset = plan.dataset
        chosen = dataset.x[plan.validation[:SAMPLES]]
        samples = [normalise(chosen[at : at + 1], dataset.spec) for at in range(len(chosen))]
        measured = measure(
            dataset.name, entries, samples, len(dataset.y_test), ComparisonOptions(requests, rounds), report
        )
    settings = {"recipe": base.to_json() | {"data": dataset.name}, "sweep": vars(sweep)}
    made = report_of(measured, settings)
    write(made, out)
    show(made, Console())
    typer.echo(f"{out / 'report.html'}")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--macs is {text!r}, expected fractions, say 0.05,0.1,0.25") from None


def _print_points(points: list[Point]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("point", "networks", "own passes", "shared", "joint", "in all")
    for one in points:
        own, shared = one.recipe.images or 0, one.recipe.recover_images or 0
        several = f"{one.recipe.recoveries} x " if one.recipe.recoveries > 1 else ""
        joint = f"{one.recipe.joint_images:,}"
        table.add_row(one.name, str(one.workers), f"{own:,}", f"{several}{shared:,}", joint, f"{one.passes:,}")
    console = Console()
    console.print(table)
    # The shared recoveries of a size are made once, for all points that start from them.
    shared_once = {
        (one.amount, one.recipe.recover_images or 0, number)
        for one in points
        for number in range(one.recipe.recoveries)
    }
    own = sum(one.workers * ((one.recipe.images or 0) + one.recipe.joint_images) for one in points)
    work = sum(shared for _, shared, _ in shared_once) + own
    views = max(one.recipe.views or 0 for one in points)
    console.print(f"{work:,} image passes in all; the reference answers {views} views of each image", highlight=False)


def _entries(
    builder: PointBuilder,
    points: list[Point],
    given: list[str],
    weights: Path,
    report: OnProgress,
    *,
    eight_bits: bool,
) -> list[Candidate]:
    """Make all networks, then, and only then, look at the test part."""
    from benchmarks.compare.measure import GIVEN, QUANTISED, REFERENCE
    from export.comparison import INT8, finish, from_weights, measure_external, quantised, read_external
    from pruning.comparison.points import SUMMED

    plan, folder = builder.plan, builder.folder
    dataset = plan.dataset
    others = [read_external(text, dataset) for text in given]
    fewer_bits = folder / f"{REFERENCE}-{INT8}"
    ours = {one.name for one in points} | {REFERENCE, fewer_bits.name}
    if len(ours | {one.name for one in others}) < len(ours) + len(others):
        raise InputError("--point: two points have the same name, expected different ones, and none a point made here")
    builder.check(points, report)
    builder.begin(points, _outer(report))
    runs = []
    for done, one in enumerate(points):
        report("points", done, len(points))
        builder.open(one, points)
        left = builder.left(one)
        runs.append(builder.make(one, points, _within(one.name, left, one.workers, report)))
        report(one.name, left, left)
    report("points", len(points), len(points))
    reference = from_weights(REFERENCE, plan.recipe.model, weights, dataset, dataset.spec)
    whole = [(reference, REFERENCE, "")]
    if eight_bits and (network := quantised(reference, dataset, plan.train, fewer_bits)) is not None:
        whole.append((network, QUANTISED, ""))
    whole += [(network, GIVEN, network.name) for network in others]
    entries: list[Candidate] = []
    total = len(whole) + len(points)
    for network, series, size in whole:
        report("test part", len(entries), total)
        found = measure_external(network, dataset, plan.validation, folder / network.name, plan.digests)
        entries.append(_entry(found, folder / network.name, series, size, "", 0))
    for one, run in zip(points, runs, strict=True):
        report("test part", len(entries), total)
        found = finish(replace(run), folder / one.name)  # a copy: a run keeps its data, and there are many
        entry = _entry(found, folder / one.name, one.series, f"{one.amount:g}", one.budget, one.passes)
        entries.append(replace(entry, summed=one.series == SUMMED))
    report("test part", total, total)
    return entries


def _outer(report: OnProgress) -> OnProgress:
    """Without the short stages of networks that are made at the same time."""

    def hear(stage: str, done: int, total: int) -> None:
        if "profile" not in stage:
            report(stage, done, total)

    return hear


def _within(name: str, passes: int, workers: int, report: OnProgress) -> OnProgress:
    """One stage for a whole point: image passes done, in whichever of its networks."""
    from pruning.pipeline.joint import STAGE as JOINT
    from pruning.pipeline.teacher import STAGE

    seen: dict[str, int] = {}

    def hear(stage: str, done: int, total: int) -> None:
        if stage == STAGE:
            report(stage, done, total)
        elif not stage.startswith("profile"):
            seen[stage] = done * (workers if stage == JOINT else 1)
            report(name, min(sum(seen.values()), passes - 1), passes)

    return hear


def _entry(found: PointResult, folder: Path, series: str, size: str, budget: str, passes: int) -> Candidate:
    from benchmarks.compare.measure import Candidate

    files = [folder / file for file in found.files]
    return Candidate(folder.name, series, size, budget, found.test, found.validation, found.macs, found.parameters,
                 passes, files, found.worst, found.worst_two, found.sure, found.asked, found.lost_mean)  # fmt: skip
