"""Options that several offline commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

_DATA = typer.Option(
    metavar="SOURCE",
    help="digits | wine | breast_cancer | cifar10:DIR | cifar100:DIR | folder:DIR[?size=64] | npz:FILE | "
    "package.module:callable",
)
_MODEL = typer.Option(help="cnn | mlp | resnet20 | vgg16 | ... | package.module:callable")
_SEED = typer.Option(help="Of everything that is drawn (0).")

Data = Annotated[str, _DATA]
Model = Annotated[str, _MODEL]
Seed = Annotated[int, _SEED]
# The same where a recipe file may say it instead.
DataOrRecipe = Annotated[str | None, _DATA]
ModelOrRecipe = Annotated[str | None, _MODEL]
SeedOrRecipe = Annotated[int | None, _SEED]
Device = Annotated[str, typer.Option(help="Where torch computes: cpu, cuda:0, ...")]
Devices = Annotated[
    list[str], typer.Option(help="Where torch computes: cpu, cuda:0, ...; give it again to deal subnets over several.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of torch; as many as pay where not given.")]
Validation = Annotated[float | None, typer.Option(help="Fraction of the training part to choose on, not to train on.")]
Precision = Annotated[str | None, typer.Option(help="auto | fp32 | bf16")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given; the recipe knows the defaults of the others."""
    return {name: value for name, value in options.items() if value is not None}
