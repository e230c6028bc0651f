"""``sensai bench``: latency against the reference and other servers, under faults, and as sizes grow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()
bench = typer.Typer(help="Measure a bundle: latency, other servers, size, faults.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command()
def data(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="As `sensai prune --data` takes it.")],
    out: Annotated[Path, typer.Option(help="The .npz file: x, raw inputs, and y, their labels.")],
    seed: Annotated[int, typer.Option(help="That the test part is drawn with, where a source has none.")] = 0,
) -> None:
    """Write the test part of a data source to a file, for `--data` of the benchmarks, where no offline side is."""
    from benchmarks import labelled
    from pruning.data import load

    dataset = load(source, seed=seed)
    labelled.write(out, dataset.x_test, dataset.y_test)
    typer.echo(f"{out}: {len(dataset.y_test)} labelled inputs")
