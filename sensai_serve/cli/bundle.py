"""``sensai bundle``: a served bundle of ONNX files that there are already, without training and without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sensai_serve.cli.options import Quiet, takes
from sensai_serve.cli.progress import progress
from sensai_serve.errors import DataError, InputError

if TYPE_CHECKING:
    from export.existing.samples import Data, RawInputs
    from sensai_serve.bundles import Bundle
    from sensai_serve.merge.rules import LabelTask
    from sensai_serve.options import Option
    from sensai_serve.preprocess import InputSpec
    from sensai_serve.tensors import Inputs

app = typer.Typer()


def _bundle_options() -> tuple[Option, ...]:
    from export.existing.options import bundle_options

    return bundle_options()


@app.command()
@takes(_bundle_options)
def bundle(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL.onnx...", help="ONNX files; FILE=class,class where one knows some classes only, - for none."
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="A new or empty directory.")],
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Labels in the order of the files' outputs, one a line; the data's."),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A TOML file that names files and their classes, in place of arguments."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE|FILE",
            help="Labelled data, as `sensai prune` takes it; or inputs alone: .npy, .npz, .csv, .json, or pictures.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model when served; the first file's.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A network for all classes that may answer where workers are lost."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A tokenizer.json of the library tokenizers: clients may then send texts."),
    ] = None,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Make a bundle of ONNX files that you have: an ensemble, replicas, or classifiers of some classes each.

    The files are looked at and run: what is missing in front of them or behind them is added to the graph, and what
    comes out is compared with what the file itself gives.
    """
    from export.existing.assemble import make_bundle
    from export.existing.members import parse_member, read_mapping
    from export.existing.options import BundleOptions
    from export.existing.texts import read_tokenizer
    from pruning.data import read_labels
    from sensai_serve.bundles import refuse_existing

    refuse_existing(out)
    if (mapping is None) == (not models):
        raise InputError("expected ONNX files, or --mapping, a file that names them")
    chosen = BundleOptions(**options)
    members = read_mapping(mapping) if mapping is not None else tuple(map(parse_member, models or ()))
    given = None if labels is None else read_labels(labels)
    with progress(quiet=quiet) as report:
        made = make_bundle(
            members,
            out,
            labels=given,
            data=_data(data, given, chosen.seed, chosen.task),
            options=chosen,
            name=name,
            reference=None if reference is None else parse_member(reference),
            tokenizer=None if tokenizer is None else read_tokenizer(tokenizer),
            on_progress=report,
        )
    for line in _summary(made):
        typer.echo(line)


def _data(data: str | None, labels: tuple[str, ...] | None, seed: int, task: LabelTask) -> Data | RawInputs | None:
    """Labelled data of a source; or a function that reads inputs alone, of a file or of a directory of files."""
    from export.existing.samples import load_data

    if data is None:
        return None
    path = Path(data)
    if not path.exists():
        return load_data(data, labels, seed, task)
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    files = [file for file in files if not file.name.startswith(".")]

    def read(specs: tuple[InputSpec, ...]) -> Inputs:
        import numpy as np

        from sensai_serve.cli.samples import read_samples
        from sensai_serve.preprocess import read_image
        from sensai_serve.tensors import NamedInputs

        samples = [sample.raw for file in files for sample in read_samples(file, specs)]
        if not samples:
            raise DataError(f"{path} has no files, expected inputs")
        try:
            if len(specs) > 1:
                rows = [one for one in samples if isinstance(one, Mapping)]
                return NamedInputs({spec.name: np.stack([row[spec.name] for row in rows]) for spec in specs})
            return np.stack(
                [read_image(one, specs[0]) if isinstance(one, bytes) else np.asarray(one) for one in samples]
            )
        except ValueError:
            raise DataError(f"{path} has inputs of different sizes, expected one size of all") from None

    return read


def _summary(bundle: Bundle) -> Iterator[str]:
    from sensai_serve.cli.inspect import accuracy_lines, confident_lines, task_lines

    manifest = bundle.manifest
    yield (
        f"{bundle.path}: {len(manifest.subnets)} workers for {len(manifest.labels)} classes, {manifest.kind} "
        f"assignment, merged by {manifest.merge.rule}"
    )
    made = manifest.provenance
    for file in made["files"]:
        loop = "; one input at a time, as it takes no batches" if file["loop"] else ""
        yield f"{file['file']}: takes {file['takes']}, gives {file['gives']}, {file['microseconds']:,.0f} us{loop}"
    for spec in manifest.inputs:
        kind = f"{spec.image.mode} pictures" if spec.image else "numbers" if spec.vocabulary is None else "tokens"
        of = "" if spec.vocabulary is None else f" of a vocabulary of {spec.vocabulary:,}"
        name = f"{spec.name}, " if len(manifest.inputs) > 1 else ""
        typed = "" if spec.dtype == "FP32" else f"{spec.dtype} "
        how = made["normalisation"] if len(manifest.inputs) == 1 else "as they are"
        yield f"input: {name}{kind} {typed}{spec.described}{of}, {how}; golden samples: {made['golden']}"
    if (texts := manifest.tokenizer) is not None:
        longer = "longer ones are refused" if texts.too_long == "refuse" else "longer ones are cut"
        yield f"texts: of at most {texts.maximum} tokens, {longer}; made {', '.join(texts.made)}"
    for words, share in made.get("normalisations_tried", {}).items():
        yield f"tried: {words}: {share:.1%} right"
    yield from task_lines(manifest)
    yield from confident_lines(bundle, None)
    yield from accuracy_lines(manifest.accuracy)
