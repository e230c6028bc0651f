"""``sensai export``: from a run to a bundle, or to models of a Triton server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sensai_serve.cli.options import Quiet, select, takes
from sensai_serve.cli.progress import progress
from sensai_serve.errors import InputError

if TYPE_CHECKING:
    from sensai_serve.bundles import Bundle
    from sensai_serve.options import Option

app = typer.Typer()


def _export_options() -> tuple[Option, ...]:
    from pruning.recipe import recipe_options

    chosen = select(recipe_options(), "merge", "agreement")
    return tuple(replace(one, default="", text=f"{one.text} The recipe's where not given.") for one in chosen)


@app.command()
@takes(_export_options)
def export(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|BUNDLE", help="Directory that `sensai prune --out` made; with --triton, or a bundle."
        ),
    ],
    out: Annotated[Path | None, typer.Option(metavar="BUNDLE", help="A new or empty directory.")] = None,
    data: Annotated[str | None, typer.Option(metavar="SOURCE", help="The run's data, where it has moved.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model when served; the data's if not given.")] = None,
    precision: Annotated[
        str,
        typer.Option(help="Arithmetic of subnets and monolith: fp32 | fp16 | int8 | package.module:callable."),
    ] = "fp32",
    pad_channels: Annotated[
        int | None,
        typer.Option(
            min=1, help="Pad layers with zeros to a multiple of this many channels; 1: not; the fastest if not given."
        ),
    ] = None,
    uint8: Annotated[
        bool,
        typer.Option(
            "--uint8", help="Networks take pixels as UINT8 and normalise them: clients send a quarter of the bytes."
        ),
    ] = False,
    monolith: Annotated[
        bool, typer.Option("--monolith", help="Add the run's compact network for all classes, to compare with.")
    ] = False,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:AXIS]",
            help="An input whose length requests choose, along this axis, 0 if not given; give it several times.",
        ),
    ] = None,
    maximum: Annotated[
        int | None, typer.Option(min=1, help="The longest that requests may choose; the data's length if not given.")
    ] = None,
    evaluate: Annotated[bool, typer.Option(help="Label the whole test part, one input at a time.")] = True,
    triton: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Add the bundle's models to this Triton model repository.")
    ] = None,
    triton_backend: Annotated[
        str, typer.Option(help="What Triton runs the subnets with: onnxruntime | python")
    ] = "onnxruntime",
    force: Annotated[
        bool, typer.Option("--force", help="Replace the bundle at --out, once the new one is whole.")
    ] = False,
    device: Annotated[
        list[str] | None, typer.Option(help="Where Triton runs them: cpu or cuda:CARD; give it several times.")
    ] = None,
    site_packages: Annotated[
        str, typer.Option(metavar="DIR", help="Where Triton's Python backend finds its packages, if not by itself.")
    ] = "",
    quiet: Quiet = False,
    **recipe: Any,
) -> None:
    """Make a bundle of a run: ONNX files that agree with torch, evaluated as the server will run them.

    With --triton, a Triton model repository of it too, or of a bundle that is there already.
    """
    from sensai_serve.bundles import MANIFEST, Bundle
    from sensai_serve.cli.triton import write_triton
    from sensai_serve.examples import bundle_path

    run = bundle_path(run)
    if (run / MANIFEST).is_file():
        if triton is None or out is not None or recipe or force or uint8:
            raise InputError(
                f"{run} is a bundle already, expected --triton, and none of --out, --merge, --agreement, --uint8 and "
                "--force"
            )
        bundle = Bundle.open(run)
    elif out is None:
        raise InputError("--out is missing, expected a new directory for the bundle")
    else:
        options: dict[str, Any] = {"name": name, "precision": precision, "padding": pad_channels, "uint8": uint8}
        options |= {"with_monolith": monolith, "with_evaluation": evaluate, "replace": force}
        options |= {"dynamic": dict(map(_axis, dynamic or ())), "maximum": maximum}
        bundle = _export(run, out, recipe | ({} if data is None else {"data": data}), options, quiet)
    if triton is not None:
        typer.echo(write_triton(bundle, triton, triton_backend, device or ["cpu"], site_packages))


def _axis(text: str) -> tuple[str, int]:
    """The name and the axis of ``NAME[:AXIS]``."""
    name, colon, axis = text.rpartition(":")
    if not colon:
        return text, 0
    if not (axis.isascii() and axis.isdigit() and len(axis) < 4):
        raise InputError(f"--dynamic is {text!r}, expected the name of an input, or NAME:AXIS with an axis from 0")
    return name, int(axis)


def _export(run: Path, out: Path, recipe: dict[str, Any], options: dict[str, Any], quiet: bool) -> Bundle:
    """Export a run, with what is given of its recipe anew."""
    from export.assemble import export as export_run
    from pruning.data import absolute
    from pruning.run import Run
    from sensai_serve.bundles import MANIFEST, refuse_existing
    from sensai_serve.errors import OutputExistsError
    from sensai_serve.options import import_plugins

    try:
        refuse_existing(out, but_bundles=options["replace"])
    except OutputExistsError as error:
        hint = ", or --force to replace the bundle" if (out / MANIFEST).is_file() and not options["replace"] else ""
        raise OutputExistsError(f"{error}{hint}") from None
    if "data" in recipe:
        recipe["data"] = absolute(recipe["data"])
    with progress(quiet=quiet) as report:
        opened = Run.open(run)
        opened = replace(opened, recipe=replace(opened.recipe, **recipe))
        import_plugins(opened.recipe, "merge")
        bundle = export_run(opened, out, **options, on_progress=report)
    for line in _summary(bundle, options):
        typer.echo(line)
    return bundle


def _summary(bundle: Bundle, options: dict[str, Any]) -> Iterator[str]:
    accuracy, provenance = bundle.manifest.accuracy, bundle.manifest.provenance
    whole = ", ".join(f"{name} {accuracy[name]:.2%}" for name in ("reference", "monolith") if name in accuracy)
    right = f"; test part right: {accuracy['test']:.2%}, {whole}" if "test" in accuracy else ""
    if "f1_micro" in accuracy:
        own = f"{accuracy['mean_average_precision']:.2%}, F1 {accuracy['f1_micro']:.2%} over all labels"
        whole = ""
        if "reference_f1_micro" in accuracy:
            whole = f" (reference {accuracy['reference_mean_average_precision']:.2%} and "
            whole += f"{accuracy['reference_f1_micro']:.2%})"
        right = f"; test part: mean average precision {own}{whole}"
    if "agreement_f1_micro" in accuracy:
        right = f"; F1 {accuracy['agreement_f1_micro']:.2%} against the reference's answers to the test part"
    if "agreement" in accuracy:
        right = f"; the reference's answer for {accuracy['agreement']:.2%} of the test part"
    yield f"{bundle.path}: {len(bundle.manifest.subnets)} subnets{right}"
    if (length := provenance.get("length")) is not None:
        less = f"; {length['padded']} of {length['samples']} samples end in padding"
        same = f"{length['same_label']} of them get the same label without it"
        yield f"requests choose a length of 1 to {length['maximum']}" + (f"{less}, {same}" if length["padded"] else "")
    precision, padding = options["precision"], provenance["precision"]["padding"]
    if (multiple := padding["multiple"]) > 1:
        us = padding["largest_subnet_us"]
        gain = f"{us['1']:,.0f} us become {us[str(multiple)]:,.0f} in the largest subnet"
        yield f"channels filled up to multiples of {multiple}: {gain}"
    if precision != "fp32":
        us = provenance["precision"]["largest_subnet_us"]
        speed = ", ".join(f"{value:,.0f} us in {name}" for name, value in us.items())
        validated = [(name, accuracy.get(f"validation_{name}")) for name in ("fp32", precision)]
        share = ", ".join(f"{value:.2%} in {name}" for name, value in validated if value is not None)
        what = "right" if bundle.manifest.task == "single" else "F1"
        yield f"the largest subnet takes {speed}" + (f"; validation part {what}: {share}" if share else "")
    if options["with_monolith"] and "monolith" not in provenance:
        yield "no monolith: the run has no network for all classes (--recover-images 0)"
