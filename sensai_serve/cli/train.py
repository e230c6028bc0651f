"""``sensai train``: a reference network from scratch, where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sensai_serve.cli.options import Device, Quiet, Threads, select, takes
from sensai_serve.cli.progress import progress
from sensai_serve.errors import InputError

if TYPE_CHECKING:
    from sensai_serve.options import Option

app = typer.Typer()


def _reference_options() -> tuple[Option, ...]:
    from pruning.recipe import recipe_options

    return select(recipe_options(), "data", "model", "task", "batch", "validation", "optimiser", "precision", "seed")


@app.command()
@takes(_reference_options, complete=True)
def train(
    *,
    out: Annotated[Path, typer.Option(help="File to write the weights to, .safetensors.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training part.")] = 30,
    rate: Annotated[
        float | None, typer.Option(help="Peak learning rate; 0.1, or 0.002 with AdamW, where not given.")
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Train a reference network from scratch, where you have none. A killed training goes on where it was."""
    from safetensors.torch import save

    from pruning.limits import enough_disk
    from pruning.recipe import Recipe
    from pruning.run.network import weights_of
    from pruning.training.loop import require_device
    from pruning.training.reference import train as train_reference
    from sensai_serve.bundles import atomic_file
    from sensai_serve.options import import_plugins

    if out.suffix != ".safetensors" or out.exists():
        raise InputError(f"--out is {out}, expected a new file that ends in .safetensors")
    recipe = Recipe(**options)
    import_plugins(recipe)
    require_device(device)
    with atomic_file(out) as temporary:  # a place that cannot be written to is found before the training
        with progress(quiet=quiet) as report:
            trained = train_reference(
                recipe.data,
                recipe.model,
                task=recipe.task,
                epochs=epochs,
                rate=rate,
                optimiser=recipe.optimiser,
                batch=recipe.batch,
                validation=recipe.validation,
                seed=recipe.seed,
                precision=recipe.precision,
                device=device,
                threads=threads,
                on_step=lambda done, total: report("train", done, total),
                snapshot=(snapshot := out.with_suffix(".training")),
            )
        with enough_disk(out):
            temporary.write_bytes(save(weights_of(trained.model)))
    snapshot.unlink(missing_ok=True)
    right = f"{trained.accuracy:.2%} of the validation part right"
    if recipe.task == "multilabel":
        right = f"F1 {trained.accuracy:.2%} over all labels of the validation part"
    typer.echo(f"{out}: {recipe.model} on {recipe.data}, {right}")
