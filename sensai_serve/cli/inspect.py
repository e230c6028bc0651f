"""``sensai inspect``: what a bundle holds and what its assignment guarantees, as tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sensai_serve.cli.inspect_placement import PlacedWorkers, place_on

if TYPE_CHECKING:
    from rich.table import Table

    from sensai_serve.bundles import Bundle
    from sensai_serve.guarantees import Guarantees
    from sensai_serve.input_spec import InputSpec
    from sensai_serve.manifest import Manifest
    from sensai_serve.text_spec import TokenizerSpec

app = typer.Typer()


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory of the bundle.")],
    devices: Annotated[
        str | None,
        typer.Option(help="Devices to place the workers on, say cpu:0,cpu:1 or cuda:0=6GiB; shows the placement."),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Inputs of the largest batch that budgets of devices are counted with.")
    ] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show a bundle's workers, classes, sizes, guarantees, accuracy, and its placement on devices; check every file."""
    from rich.console import Console

    from sensai_serve.bundle_memory import is_measured
    from sensai_serve.bundles import Bundle
    from sensai_serve.guarantees import guarantees

    opened = Bundle.open(bundle)
    opened.verify()
    promises = guarantees(opened.assignment)
    placed = None if devices is None else place_on(opened, devices, batch)
    if as_json:
        typer.echo(json.dumps(_as_json(opened, promises, placed), indent=1))
        return
    console = Console()
    manifest = opened.manifest
    offsets = f" with offsets {list(manifest.offsets)}" if manifest.offsets else ""
    counts = f"{len(manifest.labels)} classes, {len(manifest.subnets)} workers"
    console.print(f"[bold]{manifest.name}[/bold]  {counts}, {manifest.kind} assignment{offsets}", highlight=False)
    precision = f", subnets in {manifest.precision}" if manifest.precision else ""
    *inputs, last = input_lines(manifest.inputs, manifest.tokenizer)
    for line in [*inputs, f"{last}{precision}, merged by {manifest.merge.rule}", *task_lines(manifest)]:
        console.print(line, highlight=False, markup=False)
    if manifest.merge.wait is not None:
        console.print(f"requests wait for {manifest.merge.wait} where neither they nor the server say otherwise")
    console.print(_workers(opened, placed))
    if not is_measured(opened):
        console.print("memory is estimated from sizes of files: the bundle does not say what was measured")
    files = len({subnet.sha256 for subnet in manifest.subnets}) if "files" in manifest.provenance else None
    for line in promise_lines(promises, opened.assignment.n_workers, files):
        console.print(line)
    if placed is not None:
        for line in placed.lines():
            console.print(line)
    for line in confident_lines(opened, placed):
        console.print(line, highlight=False)
    for line in accuracy_lines(manifest.accuracy):
        console.print(line, highlight=False)
    console.print("[green]every file is as it was written[/green]")


def input_lines(specs: Sequence[InputSpec], tokenizer: TokenizerSpec | None = None) -> Iterator[str]:
    """What a bundle takes, one input a line."""
    if tokenizer is not None:
        longer = "longer ones are refused" if tokenizer.too_long == "refuse" else "of longer ones the first"
        yield f"texts  of at most {tokenizer.maximum} tokens ({longer}), made {', '.join(tokenizer.made)}"
    for spec in specs:
        kind = "images" if spec.image else "tokens" if spec.vocabulary is not None else "numbers"
        of = f" of a vocabulary of {spec.vocabulary:,}" if spec.vocabulary is not None else ""
        name = f"{spec.name}, " if len(specs) > 1 else ""
        yield f"input  {name}{kind} {spec.dtype} {spec.batch_described}{of}"


def task_lines(manifest: Manifest) -> Iterator[str]:
    """What answers are where they are sets of labels, and from which scores a label is voted for."""
    if manifest.task == "multilabel":
        thresholds = manifest.merge.thresholds or (manifest.merge.threshold,) * len(manifest.labels)
        if len(set(thresholds)) == 1:
            votes = f"a vote from {thresholds[0]:g}"
        else:
            pairs = zip(manifest.labels, thresholds, strict=True)
            votes = "votes from " + ", ".join(f"{label} {threshold:.3g}" for label, threshold in pairs)
        yield f"answers are sets of labels, each class decided for itself; {votes}"


def promise_lines(promises: Guarantees, n_workers: int, files: int | None = None) -> list[str]:
    """The guarantees in words, one a line.

    Args:
        promises: of the assignment.
        n_workers: W.
        files: the number of different files that the workers run, where they were given and not cut out of a network.
    """
    from sensai_serve.guarantees import tolerates

    covered, majority = promises.losses_covered, promises.losses_majority
    kept = ": every class still has a copy" if covered else ""
    classes = "class" if promises.common_classes == 1 else "classes"
    half = f"with any {majority} lost" if majority else "with no worker lost"
    lines = [
        f"redundancy {promises.redundancy}: {tolerates(covered, n_workers, 'worker')}{kept}",
        f"{half}, every class keeps more than half of its copies; "
        f"two workers have at most {promises.common_classes} {classes} in common",
    ]
    if n_workers > 1 and promises.redundancy == n_workers:
        if files == 1:
            lines.append(f"every worker runs the same file: {n_workers} replicas of one network")
        else:
            whole = f"every worker covers every class: an ensemble of {n_workers} networks for the whole task"
            lines.append(
                f"{whole}, whose classes are not divided; fewer copies of each class, or more workers, make smaller "
                "subnets"
                if files is None
                else whole
            )
    for count in promises.uncovering:
        if count.uncovering_most:
            bound = f"{count.uncovering_least}" if count.exact else f"{count.uncovering_least}-{count.uncovering_most}"
            lines.append(
                f"losing {count.lost}: {bound} of {count.total} sets leave some class without a copy "
                f"({count.uncovering_most / count.total:.1%}{'' if count.exact else ' at most'})"
            )
    return lines


def confident_lines(bundle: Bundle, placed: PlacedWorkers | None) -> Iterator[str]:
    """What the wait ``confident`` stops at, and the waves that it asks in, one a line; none without thresholds."""
    confident = bundle.manifest.merge.confident
    if confident is None:
        return
    counts = [(n, share) for n, share in enumerate(confident.stopped, 1) if share]
    shares = ", ".join(f"{share:.1%} with {n} {'copies' if n > 1 else 'copy'}" for n, share in counts)
    yield (
        f"confident: of {confident.inputs:,} inputs {shares or 'none'} of every class are sure; wherever requests "
        f"stop, at least {100 * confident.agreement:g}% of them get the class that all copies give"
    )
    if placed is None:
        yield f"confident asks workers in the order {', '.join(map(str, confident.order))}"
    else:
        yield f"confident asks in waves: {', '.join('+'.join(map(str, wave)) for wave in placed.waves())}"


def accuracy_lines(accuracy: Mapping[str, Any]) -> Iterator[str]:
    """What a manifest says about accuracy, each figure with what it is, one a line."""
    of = "is the F1 over all labels of" if any("f1_micro" in key for key in accuracy) else "right on"
    for key, value in accuracy.items():
        name, colon, precision = key.partition("validation_")
        if colon and not name:
            meaning = f"{of} the validation part, which choices are made on, with subnets in {precision}"
        else:
            meaning = _MEANINGS.get(key, "")
        yield f"{key.replace('_', ' ')}: {_figure(value)}{meaning and ' '}{meaning}"


_MEANINGS = {
    "test": "of the test part right",
    "f1_micro": "is the F1 over all labels of the test part",
    "f1_macro": "is the mean F1 of the labels, on the test part",
    "mean_average_precision": "is the mean, over the labels, of the average precision on the test part",
    "agreement_f1_micro": "is the F1 over all labels of the test part, those that the network before pruning gives",
    "agreement_f1_macro": "is the mean F1 of these labels",
    "agreement_mean_average_precision": "is the mean average precision of these labels",
    "f1_one_lost": "is the F1 over all labels of the test part with one worker lost",
    "f1_two_lost": "is the F1 over all labels of the test part with two workers lost",
    "reference_f1_macro": "is the mean F1 of the labels of the network before pruning",
    "reference_f1_micro": "is the F1 over all labels of the network before pruning",
    "reference_mean_average_precision": "is the mean average precision of the network before pruning",
    "agreement": "of the test part answered as the network before pruning does",
    "monolith_agreement": "of the test part answered so by one pruned network for all classes",
    "one_lost": "of the test part right with one worker lost",
    "two_lost": "of the test part right with two workers lost",
    "cascade": "of the test part right when further files are asked only where those before are not sure",
    "cascade_cost": "of the time of the most expensive file is what an answer takes then",
    "members": "right by each file alone (of files for some classes: of their votes)",
    "reference": "of the test part right by the network before pruning",
    "monolith": "of the test part right by one pruned network for all classes",
    "elected": "of the answers are a class that more than half of its copies vote for",
}
"""What the figures of a manifest's accuracy are, after the figure."""


def _workers(bundle: Bundle, placed: PlacedWorkers | None) -> Table:
    from rich.table import Table

    from sensai_serve.bundle_memory import memory_of
    from sensai_serve.byte_sizes import show_bytes

    memory = memory_of(bundle)
    table = Table("worker", "classes", "head")
    for heading in ("MACs", "parameters", "KiB", "memory"):
        table.add_column(heading, justify="right")
    if placed is not None:
        table.add_column("device")
    for subnet in bundle.manifest.subnets:
        cells = [
            str(subnet.worker),
            class_names(bundle.manifest.labels, subnet.classes),
            subnet.head,
            f"{subnet.macs:,}" if subnet.macs else "unknown",
            f"{subnet.parameters:,}" if subnet.parameters else "unknown",
            f"{(bundle.path / subnet.file).stat().st_size / 1024:,.0f}",
            show_bytes(memory[subnet.worker].weights + memory[subnet.worker].arena),
        ]
        if placed is not None:
            cells.append(placed.device(subnet.worker))
        table.add_row(*cells)
    return table


def class_names(labels: Sequence[str], classes: Sequence[int]) -> str:
    """The labels of a worker's classes, ``all`` where it covers every class of several."""
    return "all" if len(classes) == len(labels) > 1 else ", ".join(labels[c] for c in classes)


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2%}" if 0 <= value <= 1 else f"{value:g}"
    if isinstance(value, list) and all(isinstance(one, float) for one in value):
        return ", ".join(map(_figure, value))
    if isinstance(value, dict) and all(isinstance(one, float) for one in value.values()):
        return ", ".join(f"{name} {_figure(one)}" for name, one in value.items())
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _as_json(bundle: Bundle, promises: Guarantees, placed: PlacedWorkers | None) -> dict[str, Any]:
    from dataclasses import asdict

    raw: dict[str, Any] = json.loads(bundle.manifest.to_json())
    raw["guarantees"] = asdict(promises)
    if placed is not None:
        raw["placement"] = placed.to_json()
        if bundle.manifest.merge.confident is not None:
            raw["waves"] = placed.waves()
    return raw
