"""``sensai predict``: files and texts classified by a bundle in this process, or by a server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from sensai_serve.cli.samples import Sample
    from sensai_serve.input_spec import InputSpec
    from sensai_serve.text_spec import TokenizerSpec

Classify = Callable[["Sample"], dict[str, Any]]
SHOWN = 40
"""Characters of a text that stand for it in tables."""

app = typer.Typer()


@app.command()
def predict(
    target: Annotated[
        str,
        typer.Argument(metavar="BUNDLE|URL", help="A bundle: a directory, or example:cifar10; or a running server."),
    ],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Images; texts, where the bundle has a tokenizer; or numbers as .npy, .npz, .json or .csv rows."
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text to classify, where the bundle has a tokenizer; may be repeated.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which model, where a server has several.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file that holds the token that a server asks for.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per input instead.")] = False,
    merge_rule: Annotated[
        list[str] | None,
        typer.Option(metavar="package.module:callable", help="A merge rule of one's own that the bundle may name."),
    ] = None,
) -> None:
    """Classify files or texts with a bundle in this process, or with a server."""
    from sensai_serve.errors import InputError
    from sensai_serve.merge.rules import allow

    if not files and not text:
        raise InputError("nothing to classify, expected files or --text")

    for rule in merge_rule or ():
        allow(rule)
    predictions = _predict(target, files or [], text or [], model, token_file)
    if as_json:
        for name, prediction in predictions:
            typer.echo(json.dumps({"input": name, **prediction}))
        return
    from rich.console import Console

    Console().print(_table(predictions))


def _predict(
    target: str, files: list[Path], texts: list[str], model: str | None, token_file: Path | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    from itertools import chain

    from sensai_serve.cli.samples import read_samples, text_sample
    from sensai_serve.errors import RequestError

    with _remote(target, model, token_file) if "://" in target else _local(target) as (specs, tokenizer, classify):
        if texts and tokenizer is None:
            raise RequestError("--text: this model has no tokenizer, expected files of what it takes")
        samples = chain(
            (text_sample(_short(text), text) for text in texts),
            *(read_samples(path, specs, texts=tokenizer is not None) for path in files),
        )
        for sample in samples:
            try:
                yield sample.name, classify(sample)
            except RequestError as error:
                raise RequestError(f"{sample.name}: {error}") from None


def _short(text: str) -> str:
    """A text as a name, on one line."""
    line = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."


_Opened = tuple["Sequence[InputSpec]", "TokenizerSpec | None", Classify]
"""What a model takes, what it makes of texts, and what classifies an input."""


@contextmanager
def _remote(url: str, model: str | None, token_file: Path | None) -> Iterator[_Opened]:
    from sensai_serve.cli.endpoint import Endpoint
    from serving.runtime.endpoint import Security

    with closing(Endpoint(url, token=Security(token_file=token_file).token())) as endpoint:
        yield *endpoint.inputs(model), lambda sample: endpoint.predict(sample, model)


@contextmanager
def _local(path: str) -> Iterator[_Opened]:
    from sensai_serve import load

    classifier = load(path)

    def classify(sample: Sample) -> dict[str, Any]:
        started = time.perf_counter()
        of = classifier.predict if classifier.manifest.task == "single" else classifier.predict_labels
        prediction = of(sample.raw)
        milliseconds = {"total": round((time.perf_counter() - started) * 1000, 3)}
        return {**asdict(prediction), "milliseconds": milliseconds}

    yield classifier.manifest.inputs, classifier.manifest.tokenizer, classify


def _table(predictions: Iterator[tuple[str, dict[str, Any]]]) -> Table:
    from rich.table import Table

    table = Table("input", "label")
    for heading in ("score", "votes", "margin", "ms", "slowest worker"):
        table.add_column(heading, justify="right")
    for name, prediction in predictions:
        label, score, votes = _answered(prediction)
        workers: dict[str, float] = prediction["milliseconds"].get("workers", {})
        slowest = max(workers.items(), key=lambda item: item[1], default=None)
        table.add_row(
            name,
            label,
            score,
            votes,
            f"{prediction['margin']:.3f}",
            f"{prediction['milliseconds']['total']:.2f}",
            "" if slowest is None else f"{slowest[0]}: {slowest[1]:.2f} ms",
        )
    return table


def _answered(prediction: dict[str, Any]) -> tuple[str, str, str]:
    """Label, score and votes of a prediction; of several labels at once all of them, side by side."""
    found = prediction.get("labels")
    if found is None:
        label = prediction["label"]
        elected = "" if prediction["elected"] else " (not elected)"
        score, votes = prediction["scores"].get(label, 0.0), prediction["votes"].get(label, 0)
        return f"{label or 'none'}{elected}", f"{score:.3f}", str(votes)
    names = [one["label"] for one in found]
    doubtful = ", ".join(prediction["undecided"])
    shown = (", ".join(names) or "none") + (f" (undecided: {doubtful})" if doubtful else "")
    scores, votes_of = (f"{one['score']:.3f}" for one in found), (str(prediction["votes"][name]) for name in names)
    return shown, ", ".join(scores), ", ".join(votes_of)
