"""``sensai replay``: recorded requests as a table, answered anew by a bundle, and as arrays to label and train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer()


@app.command()
def replay(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of sensai serve --record.")],
    bundle: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Answer the inputs anew with this bundle, by all copies.")
    ] = None,
    npz: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the inputs here as they were before normalisation; needs --bundle."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per input instead.")] = False,
) -> None:
    """Show what sensai serve --record kept: inputs that workers disagreed about, and why each was kept."""
    from sensai_serve.errors import InputError
    from sensai_serve.recording import Recorded, recordings

    if npz is not None and bundle is None:
        raise InputError("--npz needs --bundle, which says how inputs are normalised")
    if npz is not None and (npz.suffix != ".npz" or npz.exists()):
        raise InputError(f"{npz} is not the name of a new file, expected one that ends in .npz")
    paths = recordings(folder)
    kept = [Recorded.read(path) for path in paths]
    rows = [recorded.answer | {"file": path.name} for path, recorded in zip(paths, kept, strict=True)]
    if bundle is not None:
        _answer_anew(bundle, kept, rows, npz)
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
    else:
        _show(rows, anew=bundle is not None)


def _answer_anew(path: Path, kept: list[Any], rows: list[dict[str, Any]], npz: Path | None) -> None:
    import numpy as np

    from sensai_serve import load
    from sensai_serve.bundles import atomic_file
    from sensai_serve.errors import DataError, RequestError
    from sensai_serve.recording import raw_inputs
    from sensai_serve.tensors import check_batch

    classifier = load(path)
    specs, labels = classifier.manifest.inputs, classifier.manifest.labels
    for recorded, row in zip(kept, rows, strict=True):
        try:
            check_batch(recorded.inputs, specs, 1)
        except RequestError as error:
            raise DataError(f"{row['file']} does not fit {path}: {error}") from None
        answer = classifier.predict_tensor(recorded.inputs)
        class_id = int(answer.class_id[0])
        label = labels[class_id] if class_id >= 0 else None
        if answer.sets_labels:
            label = ", ".join(name for name, carries in zip(labels, answer.labels[0], strict=True) if carries) or None
        row["now"] = {"label": label, "margin": float(answer.margin[0])}
    if npz is not None:
        raw = raw_inputs([_only(recorded.inputs, path) for recorded in kept], specs[0])
        given = np.array([str(row["label"]) for row in rows])
        now = np.array([str(row["now"]["label"]) for row in rows])
        names = np.array([row["file"] for row in rows])
        with atomic_file(npz) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, x=raw, given=given, now=now, name=names)


def _only(inputs: Any, path: Path) -> Any:
    """The one tensor of an input, without the batch axis."""
    from sensai_serve.errors import InputError
    from sensai_serve.tensors import NamedInputs

    if isinstance(inputs, NamedInputs):
        raise InputError(f"{path} takes {', '.join(inputs.arrays)}, expected a bundle of one input for --npz")
    return inputs[0]


def _show(rows: list[dict[str, Any]], *, anew: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in ("time", "model", "why", "label", "margin", "missing", *(("label now", "margin now") if anew else ())):
        table.add_column(name, justify="right" if name.startswith("margin") else "left")
    for row in rows:
        cells = [str(row.get("time")), str(row.get("model")), ", ".join(map(str, row.get("why", [])))]
        cells += [
            str(row["label"]),
            _margin(row),
            ", ".join(f"{w}: {c}" for w, c in dict(row.get("missing", {})).items()),
        ]
        if anew:
            cells += [str(row["now"]["label"]), _margin(row["now"])]
        table.add_row(*cells)
    Console().print(table)


def _margin(answer: dict[str, Any]) -> str:
    margin = answer.get("margin")
    return f"{margin:.3f}" if isinstance(margin, int | float) else ""
