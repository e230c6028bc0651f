"""How alike the copies of a class are: how often their votes differ, and how much their errors go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pruning.data import Labels
from pruning.merging import merge_plan
from pruning.planning.stages import assign_origins
from pruning.report import facts
from pruning.run import RECOVERED, Run
from sensai_serve.report import Picture, Row, Table
from sensai_serve.report.answers import FEW, WIDTH, square
from sensai_serve.report.drawing import heat_map

Matrix = npt.NDArray[np.float64]
"""[W, W]: a figure for every two workers, the same in both orders."""


@dataclass(frozen=True)
class Copies:
    """Two by two, how alike workers are that have classes in common; NaN where they have none.

    Votes are compared on the validation part, over all inputs and common classes. An error is a vote for a class that
    is not the input's, or none for the class that is.
    """

    disagreement: Matrix
    """The fraction of votes that differ."""
    correlation: Matrix
    """Correlation (phi) of the errors: 1 for copies that err together, 0 for independent ones. NaN also where one of
    the two makes no error."""
    origins: tuple[int, ...]
    """The origin of each worker; those of one number were cut from the same network."""

    def mean(self, values: Matrix, *, same_origin: bool) -> float | None:
        """The mean of a matrix over the pairs of workers of the same origin, or of different ones; None without any."""
        origin = np.array(self.origins)
        alike = (origin[:, None] == origin) == same_origin
        chosen = values[np.triu(alike, 1) & ~np.isnan(values)]
        return float(chosen.mean()) if len(chosen) else None


def copies(run: Run) -> Copies:
    """Compare the votes of a run's workers on its validation part.

    Raises:
        InputError: the run is not finished, or the scores are not of this data.
    """
    rows, thresholds = run.assignment.rows, np.array(merge_plan(run).thresholds)
    every = zip(facts.validation_scores(run), rows, strict=True)
    votes = [np.asarray(scores) >= thresholds[list(row)] for scores, row in every]  # [V, k] each
    origins = assign_origins(rows, run.recipe.recoveries) if run.has(RECOVERED) else (0,) * len(rows)
    return Copies(*compare(rows, votes, run.dataset.y[run.split[1]]), tuple(origins))


def compare(
    rows: Sequence[Sequence[int]], votes: Sequence[npt.NDArray[np.bool_]], truth: Labels
) -> tuple[Matrix, Matrix]:
    """Disagreement and correlation of errors, [W, W] each.

    Args:
        rows: the classes of each worker.
        votes: [N, k] of each worker, for its classes in their order.
        truth: the class of each input, [N]; sets of them [N, C].
    """
    disagreement = np.full((len(rows), len(rows)), np.nan)
    correlation = disagreement.copy()
    for a, first in enumerate(rows):
        for b, second in enumerate(rows[:a]):
            common = [c for c in first if c in second]
            if not common or not len(truth):
                continue
            mine = votes[a][:, [first.index(c) for c in common]]
            other = votes[b][:, [second.index(c) for c in common]]
            right = truth[:, common] > 0 if truth.ndim == 2 else truth[:, None] == np.array(common)
            disagreement[a, b] = disagreement[b, a] = (mine != other).mean()
            correlation[a, b] = correlation[b, a] = _phi(mine != right, other != right)
    return disagreement, correlation


def _phi(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    """Correlation of two arrays of booleans; NaN where one of them is constant."""
    p, q = first.mean(), second.mean()
    spread = p * (1 - p) * q * (1 - q)
    return float(((first & second).mean() - p * q) / np.sqrt(spread)) if spread > 0 else float("nan")


def table(copies: Copies) -> list[Table]:
    """Means over pairs of copies of one origin and of different ones; no table where no class has two copies."""
    rows: list[Row] = []
    for same_origin, what in ((False, "copies of different origins"), (True, "copies of one origin")):
        differ = copies.mean(copies.disagreement, same_origin=same_origin)
        together = copies.mean(copies.correlation, same_origin=same_origin)
        if differ is not None:
            rows.append((what, f"{differ:.2%}", "no errors" if together is None else f"{together:.2f}"))
    note = (
        "The less the errors of a class's copies go together, the more a vote among them gains. Means over all pairs "
        "of workers with classes in common, validation part; copies of one origin are of the same compact network."
    )
    columns = ("", "votes that differ", "correlation of errors")
    return [Table("How much copies differ", columns, rows, note)] if rows else []


def pictures(copies: Copies) -> list[Picture]:
    """Workers by workers, how often votes differ and how much errors go together; none without copies."""
    drawn = []
    differ, together = copies.disagreement, copies.correlation
    if not np.isnan(differ).all():
        most = float(np.nanmax(differ)) or 1.0
        note = (
            "Percent of votes that differ between two workers, for the classes that both cover, on the validation part."
        )
        drawn.append(
            _picture(
                "votes-differ", "Do copies vote alike?", differ * 100, f"{note} Empty: no class in common.", most * 100
            )
        )
    if not np.isnan(together).all():
        note = (
            "Correlation of the errors of copies, validation part: 1, they err on the same inputs, and a vote among "
            "them gains nothing; 0, they err independently. Empty: no class in common, or no error to compare."
        )
        drawn.append(_picture("errors-together", "Do copies err together?", together, note, 1.0))
    return drawn


def _picture(name: str, title: str, values: Matrix, note: str, most: float) -> Picture:
    workers = [str(w) for w in range(len(values))]
    digits = 2 if most <= 10 else 1
    texts = [["" if np.isnan(v) else f"{v:.{digits}f}" for v in row] for row in values] if len(workers) <= FEW else None
    draw = heat_map(values, workers, workers, x_label="worker", y_label="worker", limits=(0, most), texts=texts, hue=6)
    return Picture(name, title, draw, note, (WIDTH, square(len(workers), 0.9)))
