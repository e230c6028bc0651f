"""``sensai prune``: from a trained network to one small subnet per worker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sensai_serve.cli.options import (
    DataOrRecipe,
    Devices,
    ModelOrRecipe,
    Precision,
    Quiet,
    SeedOrRecipe,
    Threads,
    Validation,
    given,
)
from sensai_serve.cli.progress import progress
from sensai_serve.errors import InputError

if TYPE_CHECKING:
    from pruning.pipeline.estimate import Estimate
    from pruning.planning.plan import Plan
    from pruning.selection.latency import Latency


def prune(
    *,
    weights: Annotated[Path, typer.Option(help="Of the reference: .safetensors, .npz, or a torch state dict.")],
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Options from a TOML file (docs/pruning.md); those given here win."),
    ] = None,
    data: DataOrRecipe = None,
    model: ModelOrRecipe = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Directory of the run; an unfinished one goes on.")
    ] = None,
    assignment: Annotated[str | None, typer.Option(help="binary | grouped | cyclic (binary)")] = None,
    redundancy: Annotated[int | None, typer.Option(help="Workers that cover each class (cyclic; 3).")] = None,
    groups: Annotated[int | None, typer.Option(help="Put the classes into this many groups first.")] = None,
    grouping: Annotated[
        str | None,
        typer.Option(help="tsne | confusion | confusion_apart | random | package.module:callable"),
    ] = None,
    uneven: Annotated[
        bool | None, typer.Option("--uneven", help="Let groups differ by one class where the classes do not divide.")
    ] = None,
    offsets: Annotated[
        str | None, typer.Option(help="Of the cyclic code, say 0,1,3; searched for if not given.")
    ] = None,
    criterion: Annotated[str | None, typer.Option(help="taylor | hybrid | mean_activation | apoz | ...")] = None,
    theta1: Annotated[float | None, typer.Option(help="Activations below it count as none (hybrid).")] = None,
    theta2: Annotated[float | None, typer.Option(help="Channels of a higher mean activation stay (hybrid).")] = None,
    macs: Annotated[float | None, typer.Option(help="Keep this fraction of the reference's MACs (0.25).")] = None,
    parameters: Annotated[float | None, typer.Option(help="Or: keep this fraction of its parameters.")] = None,
    channels: Annotated[float | None, typer.Option(help="Or: cut this fraction of each layer's channels.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Or: cut channels of an importance below it.")] = None,
    microseconds: Annotated[
        float | None, typer.Option(help="Or: cut until an exported subnet takes this long for one input, on one core.")
    ] = None,
    multiple: Annotated[
        int | None, typer.Option(help="Of channels that every layer keeps (8), for processors' sake; 1: any number.")
    ] = None,
    depth: Annotated[
        float | None, typer.Option(help="Drop this fraction of the residual blocks that an identity skip goes around.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="sigmoid | softmax_others | ...")] = None,
    sampling: Annotated[str | None, typer.Option(help="balanced | uniform | ...")] = None,
    distil: Annotated[
        float | None, typer.Option(help="Weight of the reference's answers against the labels, 0 to 1.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the distillation.")] = None,
    views: Annotated[
        int | None,
        typer.Option(help="Views of an image, by augmentation, that the reference answers once; 0: new ones always."),
    ] = None,
    reconstruct_images: Annotated[
        int | None, typer.Option(help="Images that a cut network's layers are fitted to before retraining; 0: none.")
    ] = None,
    recover_images: Annotated[
        int | None,
        typer.Option(help="Image passes of the shared compact network (12 epochs); 0: none, cut each worker anew."),
    ] = None,
    recover_amount: Annotated[
        float | None, typer.Option(help="Its --macs (or --parameters, ...); as the workers' if not given.")
    ] = None,
    recover_depth: Annotated[float | None, typer.Option(help="Its --depth; as the workers' if not given.")] = None,
    recover_rate: Annotated[float | None, typer.Option(help="Its peak learning rate.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Cut it in so many steps, each followed by its part of the image passes (1).")
    ] = None,
    recoveries: Annotated[
        int | None,
        typer.Option(help="Make so many of it: copies of a class come from different ones and err less alike (1)."),
    ] = None,
    images: Annotated[int | None, typer.Option(help="Image passes of each worker's own retraining (1 epoch).")] = None,
    rate: Annotated[float | None, typer.Option(help="Its peak learning rate.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="temperature: scale each worker's logits to the validation labels | none")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images per iteration.")] = None,
    profile_images: Annotated[int | None, typer.Option(help="Images of each class to profile.")] = None,
    validation: Validation = None,
    precision: Precision = None,
    seed: SeedOrRecipe = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print workers, guarantees, sizes, time and disk; write nothing.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Subnets made at a time, each in its own process; one per device.")
    ] = None,
    executor: Annotated[str, typer.Option(help="What makes them: local | ray | package.module:callable")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster; RAY_ADDRESS, or one on this machine, if not given.")
    ] = None,
    device: Devices = ("cpu",),  # type: ignore[assignment]
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Cut one small subnet per worker out of a trained network and retrain each. A killed run goes on where it was."""
    from dataclasses import replace

    from pruning.data import absolute
    from pruning.executors import make_slots
    from pruning.pipeline.estimate import estimate
    from pruning.pipeline.prune import prune_reference, reference_accuracy, validation_accuracy
    from pruning.planning.plan import make_plan
    from pruning.recipe import Recipe, read_recipe
    from pruning.training.loop import require_device

    if address is not None:
        if executor != "ray":
            raise InputError(f"--address is of a Ray cluster, expected --executor ray, not {executor}")
        os.environ["RAY_ADDRESS"] = address  # where Ray itself looks for it
    if out is None and not dry_run:
        raise InputError("--out is missing, expected a directory for the run (or --dry-run)")
    targets = given(macs=macs, parameters=parameters, channels=channels, threshold=threshold, microseconds=microseconds)
    if len(targets) > 1:
        raise InputError(f"--{' and --'.join(targets)}: expected one of them")
    target = next(({"target": name, "amount": amount} for name, amount in targets.items()), {})
    options = given(
        data=data,
        model=model,
        assignment=assignment,
        seed=seed,
        redundancy=redundancy,
        groups=groups,
        grouping=grouping,
        uneven=uneven,
        offsets=None if offsets is None else _offsets(offsets),
        criterion=criterion,
        theta1=theta1,
        theta2=theta2,
        multiple=multiple,
        depth=depth,
        head=head,
        sampling=sampling,
        distil=distil,
        temperature=temperature,
        views=views,
        reconstruct_images=reconstruct_images,
        recover_images=recover_images,
        recover_amount=recover_amount,
        recover_depth=recover_depth,
        recover_rate=recover_rate,
        steps=steps,
        recoveries=recoveries,
        images=images,
        rate=rate,
        calibration=calibration,
        batch=batch,
        profile_images=profile_images,
        validation=validation,
        precision=precision,
    )
    chosen = Recipe.from_json((read_recipe(recipe) if recipe else {}) | target | options)
    chosen = replace(chosen, data=absolute(chosen.data))
    for name in device:
        require_device(name)
    slots = make_slots(jobs, device, threads)
    with progress(quiet=quiet) as report:
        plan = make_plan(chosen, weights, device=device[0], threads=threads)
        if out is None or dry_run:
            found = estimate(plan, slots, latency=_latency(plan), on_progress=report)
        else:
            run = prune_reference(plan, out, slots=slots, executor=executor, latency=_latency(plan), on_progress=report)
    if out is None or dry_run:
        _print_plan(plan, found, len(slots))
        return
    reference, merged = reference_accuracy(plan), validation_accuracy(plan, run)
    typer.echo(
        f"{out}: {plan.assignment.n_workers} subnets; validation part right: {merged:.2%}, reference {reference:.2%}"
    )


def _latency(plan: Plan) -> Latency:
    """Measures a subnet as it will be served: an ONNX file, one input at a time, one core."""
    import numpy as np

    from export.speed import microseconds
    from export.to_onnx import to_onnx

    one = np.zeros((1, *plan.shape), np.float32)
    return lambda subnet: microseconds({"subnet": to_onnx(subnet, plan.dataset.spec.name, plan.shape)}, one)["subnet"]


def _offsets(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--offsets is {text!r}, expected whole numbers, say 0,1,3") from None


def _print_plan(plan: Plan, found: Estimate, jobs: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from sensai_serve.cli.inspect import promise_lines
    from sensai_serve.guarantees import guarantees

    table = Table("worker", "classes", "MACs", "of the reference's", "parameters")
    for worker, (classes, size) in enumerate(zip(plan.assignment.rows, found.sizes, strict=True)):
        names = ", ".join(plan.dataset.labels[c] for c in classes)
        share = f"{size.macs / plan.size.macs:.1%}"
        table.add_row(str(worker), names, f"{size.macs:,}", share, f"{size.parameters:,}")
    console = Console()
    console.print(table)
    console.print(f"reference: {plan.size.macs:,} MACs, {plan.size.parameters:,} parameters", highlight=False)
    at_a_time = f"{jobs} at a time" if jobs > 1 else "one after the other"
    console.print(f"time: about {_time(found.seconds)}, workers {at_a_time}", highlight=False)
    console.print(f"disk: about {found.disk / 1e6:,.1f} MB", highlight=False)
    for line in promise_lines(guarantees(plan.assignment), plan.assignment.n_workers):
        console.print(line)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
