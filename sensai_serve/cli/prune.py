"""``sensai prune``: from a trained network to one small subnet per worker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sensai_serve.cli.options import Devices, Quiet, Threads, takes
from sensai_serve.cli.progress import progress
from sensai_serve.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pruning.cutting.size import Size
    from pruning.pipeline.estimate import Estimate
    from pruning.planning.plan import RunPlan
    from pruning.run import Network
    from pruning.selection.latency import Latency
    from sensai_serve.options import Option


app = typer.Typer()


def _recipe_options() -> tuple[Option, ...]:
    from pruning.recipe import recipe_options

    return recipe_options()


@app.command()
@takes(_recipe_options)
def prune(
    *,
    weights: Annotated[Path, typer.Option(help="The reference's weights: .safetensors, .npz, or a torch state dict.")],
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Options from a TOML file (docs/pruning.md); those given here win."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|reference",
            help="Labels in the order of the reference's outputs, one a line; the data's order. reference: learn from "
            "its answers alone, where the data has no labels.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Directory of the run; an unfinished one goes on.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print workers, guarantees, sizes, time and disk; write nothing.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Subnets made at a time, each in its own process; one per device.")
    ] = None,
    executor: Annotated[str, typer.Option(help="What makes them: local | ray | package.module:callable")] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Address of the Ray cluster; RAY_ADDRESS, or one on this machine, if not given."),
    ] = None,
    device: Devices = ("cpu",),  # type: ignore[assignment]
    threads: Threads = None,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Cut one small subnet per worker out of a trained network and retrain each. A killed run goes on where it was."""
    from dataclasses import replace

    from export.trial import try_export
    from pruning.data import absolute, with_order
    from pruning.executors import make_slots
    from pruning.pipeline.estimate import estimate
    from pruning.pipeline.prune import prune_reference, reference_accuracy, validation_accuracy
    from pruning.pipeline.rehearsal import rehearse
    from pruning.planning.plan import as_begun, make_plan
    from pruning.recipe import Recipe, from_flags, read_recipe
    from pruning.run import Run
    from pruning.selection.source import reference_source
    from pruning.training.loop import require_device
    from sensai_serve.options import import_plugins

    if address is not None:
        if executor != "ray":
            raise InputError(f"--address is of a Ray cluster, expected --executor ray, not {executor}")
        os.environ["RAY_ADDRESS"] = address  # where Ray itself looks for it
    if out is None and not dry_run:
        raise InputError("--out is missing, expected a directory for the run (or --dry-run)")
    chosen = Recipe.from_json((read_recipe(recipe) if recipe else {}) | from_flags(options))
    if str(labels) == "reference":
        chosen, labels = replace(chosen, labels="reference"), None
    chosen = replace(chosen, data=absolute(chosen.data if labels is None else with_order(chosen.data, labels)))
    import_plugins(chosen)
    for name in device:
        require_device(name)
    slots = make_slots(jobs, device, threads)
    plan = make_plan(chosen, weights, device=device[0], threads=threads)
    typer.echo(str(plan.check))
    with progress(quiet=quiet) as report:
        if out is None or dry_run or Run.resume(out, plan.recipe, plan.digests) is None:
            rehearse(reference_source(plan, report), try_export, report)
        if out is None or dry_run:
            found = estimate(plan, slots, latency=_latency(plan), on_progress=report)
        else:
            run = prune_reference(plan, out, slots=slots, executor=executor, latency=_latency(plan), on_progress=report)
    if out is None or dry_run:
        _print_plan(plan, found, len(slots))
        return
    plan = as_begun(plan, run)
    _print_sizes(plan, [run.network(run.folder(worker)) for worker in range(plan.assignment.n_workers)])
    merged = validation_accuracy(plan, run)
    if plan.recipe.task == "multilabel":
        found_right = f"F1 {merged:.2%} over all labels of the validation part"
        if plan.recipe.labels != "reference":
            found_right += f", reference {reference_accuracy(plan):.2%}"
    elif plan.recipe.labels == "reference":
        found_right = f"the reference's answer for {merged:.2%} of the validation part"
    else:
        found_right = f"validation part right: {merged:.2%}, reference {reference_accuracy(plan):.2%}"
    typer.echo(f"{out}: {plan.assignment.n_workers} subnets; {found_right}")


def _latency(plan: RunPlan) -> Latency:
    """Measures a subnet as it will be served: an ONNX file, one input at a time, one core."""
    from export.speed import microseconds
    from export.to_onnx import to_onnx
    from sensai_serve.tensors import example

    specs = plan.dataset.network_inputs
    one = example(specs)
    return lambda subnet: microseconds({"subnet": to_onnx(subnet, specs)}, one)["subnet"]


def _print_plan(plan: RunPlan, found: Estimate, jobs: int) -> None:
    from sensai_serve.cli.inspect import promise_lines
    from sensai_serve.guarantees import guarantees

    _print_sizes(plan, found.sizes)
    at_a_time = f"{jobs} at a time" if jobs > 1 else "one after the other"
    typer.echo(f"time: about {_time(found.seconds)}, workers {at_a_time}")
    typer.echo(f"disk: about {found.disk / 1e6:,.1f} MB")
    for line in promise_lines(guarantees(plan.assignment), plan.assignment.n_workers):
        typer.echo(line)


def _print_sizes(plan: RunPlan, sizes: Sequence[Size | Network]) -> None:
    """A table of the workers' networks, and how far they are from what was asked for."""
    from rich.console import Console
    from rich.table import Table

    from pruning.run import reached, warning
    from sensai_serve.cli.inspect import class_names

    table = Table("worker", "classes", "MACs", "of the reference's", "parameters", "of the reference's")
    for worker, (classes, size) in enumerate(zip(plan.assignment.rows, sizes, strict=True)):
        shares = [
            f"{own / max(whole, 1):.1%}"
            for own, whole in ((size.macs, plan.size.macs), (size.parameters, plan.size.parameters))
        ]
        names = class_names(plan.dataset.labels, classes)
        table.add_row(str(worker), names, f"{size.macs:,}", shares[0], f"{size.parameters:,}", shares[1])
    Console().print(table)
    typer.echo(f"reference: {plan.size.macs:,} MACs, {plan.size.parameters:,} parameters")
    if (found := reached(plan.recipe, sizes, plan.size)) is not None:
        typer.echo(f"cut: {warning(found, plan.recipe) or found}")


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
