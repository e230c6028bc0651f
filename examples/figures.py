"""What the examples have in common: they run commands of sensai as a user types them, and print one table."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main

COLUMNS = ("network", "reference", "merged", "one lost: mean, worst", "two lost: mean, worst",
           "one core, us: reference", "slowest worker", "times as fast")  # fmt: skip


def sensai(*words: object) -> None:
    """Run one command of sensai, and show it.

    Raises:
        SystemExit: it failed.
    """
    typed = [str(word) for word in words]
    print(f"\n$ sensai {shlex.join(typed)}", flush=True)
    try:
        main(typed)
    except SystemExit as ended:
        if ended.code:
            raise


def row(name: str, bundle: Bundle, x: np.ndarray, y: np.ndarray, prepare: object) -> tuple[str, ...]:
    """A row of `COLUMNS`: accuracy on the test part, whole and with workers lost, and time for one input on one core.

    Args:
        name: what the network is.
        bundle: exported with its evaluation.
        x: [N, ...] raw inputs of the test part.
        y: [N] true labels.
        prepare: makes the network's inputs of them, as `pruning.data.Dataset.prepared`.
    """
    from export.evaluate import scores_of
    from sensai_serve.merge.lost_workers import ScoredInputs, accuracy_curve

    scored = ScoredInputs(bundle.merge_plan, scores_of(bundle, x, prepare))  # type: ignore[arg-type]
    whole, one, two = accuracy_curve(scored, y, up_to=2)
    times = bundle.manifest.provenance["latency_us"]
    slowest = max(times["subnets"])
    return (
        name,
        f"{bundle.manifest.accuracy['reference']:.2%}",
        f"{whole.mean:.2%}",
        f"{one.mean:.2%}, {one.worst:.2%}",
        f"{two.mean:.2%}, {two.worst:.2%}",
        f"{times['reference']:,.0f}",
        f"{slowest:,.0f}",
        f"{times['reference'] / slowest:.2f}",
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], out: Path) -> None:
    """Print a table in Markdown, and write it to a file."""
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n" + "\n".join(lines) + f"\n\n{out}")
