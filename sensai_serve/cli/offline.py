"""``sensai train``, ``sensai prune``, ``sensai export``: from data to a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sensai_serve.cli.progress import progress
from sensai_serve.errors import InputError

if TYPE_CHECKING:
    from pruning.latency import Latency
    from pruning.plan import Plan
    from sensai_serve.bundle import Bundle

app = typer.Typer()

Data = Annotated[
    str,
    typer.Option(
        metavar="SOURCE",
        help="digits | wine | breast_cancer | cifar10:DIR | cifar100:DIR | folder:DIR[?size=64] | npz:FILE | "
        "package.module:callable",
    ),
]
Model = Annotated[str, typer.Option(help="cnn | mlp | resnet20 | vgg16 | ... | package.module:callable")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Device = Annotated[str, typer.Option(help="Where torch computes: cpu, cuda:0, ...")]
Devices = Annotated[
    list[str], typer.Option(help="Where torch computes: cpu, cuda:0, ...; give it again to deal subnets over several.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of torch; as many as pay where not given.")]
Validation = Annotated[float | None, typer.Option(help="Fraction of the training part to choose on, not to train on.")]
Precision = Annotated[str | None, typer.Option(help="auto | fp32 | bf16")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


@app.command()
def train(
    *,
    data: Data,
    model: Model,
    out: Annotated[Path, typer.Option(help="The weights, a .safetensors file.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training part.")] = 30,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.1,
    batch: Annotated[int, typer.Option(min=2)] = 128,
    validation: Validation = None,
    precision: Precision = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Train a reference network from scratch, where you have none. A killed training goes on where it was."""
    from safetensors.torch import save_file

    from pruning.recipe import Recipe
    from pruning.retrain import require_device
    from pruning.train import train as train_reference
    from sensai_serve.bundle import atomic_file

    if out.suffix != ".safetensors" or out.exists():
        raise InputError(f"--out is {out}, expected a new file that ends in .safetensors")
    options = Recipe(data, model, **_given(validation=validation, precision=precision), batch=batch, seed=seed)
    require_device(device)
    with progress(quiet=quiet) as report:
        trained = train_reference(
            data,
            model,
            epochs=epochs,
            rate=rate,
            batch=batch,
            validation=options.validation,
            seed=seed,
            precision=options.precision,
            device=device,
            threads=threads,
            on_step=lambda done, total: report("train", done, total),
            snapshot=(snapshot := out.with_suffix(".training")),
        )
    with atomic_file(out) as temporary:
        save_file({name: value.contiguous().cpu() for name, value in trained.model.state_dict().items()}, temporary)
    snapshot.unlink(missing_ok=True)
    typer.echo(f"{out}: {model} on {data}, {trained.accuracy:.2%} of the validation part right")


@app.command()
def prune(
    *,
    data: Data,
    model: Model,
    weights: Annotated[Path, typer.Option(help="Of the reference: .safetensors, .npz, or a torch state dict.")],
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Directory of the run; an unfinished one goes on.")
    ] = None,
    assignment: Annotated[str, typer.Option(help="binary | grouped | cyclic")] = "binary",
    redundancy: Annotated[int | None, typer.Option(help="Workers that cover each class (cyclic; 3).")] = None,
    groups: Annotated[int | None, typer.Option(help="Put the classes into this many groups first.")] = None,
    grouping: Annotated[str | None, typer.Option(help="tsne | random | package.module:callable")] = None,
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
    depth: Annotated[
        float | None, typer.Option(help="Drop this fraction of the residual blocks that an identity skip goes around.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="sigmoid | softmax_others | ...")] = None,
    sampling: Annotated[str | None, typer.Option(help="balanced | uniform | ...")] = None,
    distil: Annotated[
        float | None, typer.Option(help="Weight of the reference's answers against the labels, 0 to 1.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the distillation.")] = None,
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
    images: Annotated[int | None, typer.Option(help="Image passes of each worker's own retraining (1 epoch).")] = None,
    rate: Annotated[float | None, typer.Option(help="Its peak learning rate.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="temperature: scale each worker's logits to the validation labels | none")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images per iteration.")] = None,
    profile_images: Annotated[int | None, typer.Option(help="Images of each class to profile.")] = None,
    validation: Validation = None,
    precision: Precision = None,
    seed: Seed = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print workers, guarantees and sizes; write nothing.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Subnets made at a time, each in its own process; one per device.")
    ] = None,
    executor: Annotated[str, typer.Option(help="What makes them: local | package.module:callable")] = "local",
    device: Devices = ("cpu",),  # type: ignore[assignment]
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Cut one small subnet per worker out of a trained network and retrain each. A killed run goes on where it was."""
    from pruning import pipeline
    from pruning.data import absolute
    from pruning.executors import deal
    from pruning.plan import make_plan
    from pruning.recipe import Recipe
    from pruning.retrain import require_device

    if out is None and not dry_run:
        raise InputError("--out is missing, expected a directory for the run (or --dry-run)")
    targets = _given(
        macs=macs, parameters=parameters, channels=channels, threshold=threshold, microseconds=microseconds
    )
    if len(targets) > 1:
        raise InputError(f"--{' and --'.join(targets)}: expected one of them")
    target = next(({"target": name, "amount": amount} for name, amount in targets.items()), {})
    given = _given(
        redundancy=redundancy,
        groups=groups,
        grouping=grouping,
        offsets=None if offsets is None else _offsets(offsets),
        criterion=criterion,
        theta1=theta1,
        theta2=theta2,
        depth=depth,
        head=head,
        sampling=sampling,
        distil=distil,
        temperature=temperature,
        reconstruct_images=reconstruct_images,
        recover_images=recover_images,
        recover_amount=recover_amount,
        recover_depth=recover_depth,
        recover_rate=recover_rate,
        steps=steps,
        images=images,
        rate=rate,
        calibration=calibration,
        batch=batch,
        profile_images=profile_images,
        validation=validation,
        precision=precision,
    )
    recipe = Recipe(absolute(data), model, assignment, seed=seed, **target, **given)
    for name in device:
        require_device(name)
    slots = deal(jobs, device, threads)
    with progress(quiet=quiet) as report:
        plan = make_plan(recipe, weights, device=device[0], threads=threads)
        if out is None or dry_run:
            sizes = pipeline.planned_sizes(plan, latency=_latency(plan), on_progress=report)
        else:
            run = pipeline.prune(plan, out, slots=slots, executor=executor, latency=_latency(plan), on_progress=report)
    if out is None or dry_run:
        _print_plan(plan, sizes)
        return
    reference, merged = pipeline.reference_accuracy(plan), pipeline.validation_accuracy(plan, run)
    typer.echo(
        f"{out}: {plan.assignment.n_workers} subnets; validation part right: {merged:.2%}, reference {reference:.2%}"
    )


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="What `sensai prune --out` made, or a bundle.")],
    out: Annotated[Path | None, typer.Option(metavar="BUNDLE", help="A new or empty directory.")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Where the run's data lies now, if it moved.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name when served; the data's if not given.")] = None,
    precision: Annotated[
        str,
        typer.Option(help="Of subnets and monolith: fp32 | fp16 | int8 | package.module:callable."),
    ] = "fp32",
    monolith: Annotated[
        bool, typer.Option("--monolith", help="Add the run's compact network for all classes, to compare with.")
    ] = False,
    evaluate: Annotated[bool, typer.Option(help="Label the whole test part, one input at a time.")] = True,
    triton: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Add the subnets to this Triton model repository.")
    ] = None,
    triton_backend: Annotated[
        str, typer.Option(help="What Triton runs them with: onnxruntime | python")
    ] = "onnxruntime",
    device: Annotated[
        list[str] | None, typer.Option(help="Where Triton runs them: cpu or cuda:CARD; give it several times.")
    ] = None,
    site_packages: Annotated[
        str, typer.Option(metavar="DIR", help="Where Triton's Python backend finds onnxruntime, if not by itself.")
    ] = "",
    quiet: Quiet = False,
) -> None:
    """Make a bundle of a run: ONNX files that agree with torch, evaluated as the server will run them.

    With --triton, a Triton model repository of it too, or of a bundle that is there already.
    """
    from sensai_serve.bundle import MANIFEST, Bundle
    from sensai_serve.cli.triton import write_triton

    if (run / MANIFEST).is_file():
        if triton is None or out is not None:
            raise InputError(f"{run} is a bundle already, expected --triton, and no --out")
        bundle = Bundle.open(run)
    elif out is None:
        raise InputError("--out is missing, expected a new directory for the bundle")
    else:
        options = {"name": name, "precision": precision, "with_monolith": monolith, "with_evaluation": evaluate}
        bundle = _export(run, out, data, options, quiet)
    if triton is not None:
        typer.echo(write_triton(bundle, triton, triton_backend, device or ["cpu"], site_packages))


def _export(run: Path, out: Path, data: str | None, options: dict[str, Any], quiet: bool) -> Bundle:
    from dataclasses import replace

    from export.assemble import export as export_run
    from pruning.checkpoint import Run
    from pruning.data import absolute
    from sensai_serve.bundle import refuse_existing

    refuse_existing(out)
    with progress(quiet=quiet) as report:
        opened = Run.open(run)
        if data is not None:
            opened = replace(opened, recipe=replace(opened.recipe, data=absolute(data)))
        bundle = export_run(opened, out, **options, on_progress=report)
    for line in _summary(bundle, options):
        typer.echo(line)
    return bundle


def _summary(bundle: Bundle, options: dict[str, Any]) -> Iterator[str]:
    accuracy, provenance = bundle.manifest.accuracy, bundle.manifest.provenance
    whole = ", ".join(f"{name} {accuracy[name]:.2%}" for name in ("reference", "monolith") if name in accuracy)
    right = f"; test part right: {accuracy['test']:.2%}, {whole}" if accuracy else ""
    yield f"{bundle.path}: {len(bundle.manifest.subnets)} subnets{right}"
    precision = options["precision"]
    if precision != "fp32":
        us = provenance["precision"]["largest_subnet_us"]
        speed = ", ".join(f"{value:,.0f} us in {name}" for name, value in us.items())
        validated = [(name, accuracy.get(f"validation_{name}")) for name in ("fp32", precision)]
        share = ", ".join(f"{value:.2%} in {name}" for name, value in validated if value is not None)
        yield f"the largest subnet takes {speed}" + (f"; validation part right: {share}" if share else "")
    if options["with_monolith"] and "monolith" not in provenance:
        yield "no monolith: the run has no network for all classes (--recover-images 0)"


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given; the recipe knows the defaults of the others."""
    return {name: value for name, value in options.items() if value is not None}


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


def _print_plan(plan: Plan, sizes: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from sensai_serve.cli.inspect import promise_lines
    from sensai_serve.guarantees import guarantees

    table = Table("worker", "classes", "MACs", "of the reference's", "parameters")
    for worker, (classes, size) in enumerate(zip(plan.assignment.rows, sizes, strict=True)):
        names = ", ".join(plan.dataset.labels[c] for c in classes)
        share = f"{size.macs / plan.size.macs:.1%}"
        table.add_row(str(worker), names, f"{size.macs:,}", share, f"{size.parameters:,}")
    console = Console()
    console.print(table)
    console.print(f"reference: {plan.size.macs:,} MACs, {plan.size.parameters:,} parameters", highlight=False)
    for line in promise_lines(guarantees(plan.assignment), plan.assignment.n_workers):
        console.print(line)
