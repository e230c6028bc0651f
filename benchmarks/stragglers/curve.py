"""Accuracy against lost workers, for one, two, ... copies of each class: the picture of robust class parallelism."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from benchmarks import plots
from benchmarks.oracle import Copies, Oracle, accuracy, losses, majority
from benchmarks.report import Picture
from benchmarks.stragglers import Aim, Context, Finding
from sensai_serve.bundle import Bundle

MOST_SETS = 252
"""Sets of lost workers that are tried for each number of them: all, up to ten workers."""


def run(context: Context) -> Finding:
    """In this process, from the scores of the bundle's own ONNX files."""
    truth, name = context.data.labels, context.bundle.manifest.name
    case = "accuracy with workers lost, by redundancy"
    if truth is None:
        return Finding(case, [Aim("accuracy curve", "no labels given: --data", None)], {})
    if context.bundle.manifest.merge.rule != "majority":
        return Finding(case, [Aim("accuracy curve", f"not for {context.bundle.manifest.merge.rule}", None)], {})
    codes: dict[str, tuple[Copies, float]] = {}
    for r, copies in _fewer_copies(context.bundle, context.oracle).items():
        codes[f"{name}, r = {r}"] = copies, context.oracle.plan.threshold
    for other in context.beside:
        oracle = Oracle(other, context.data.inputs)
        codes[f"{other.manifest.name}, r = {other.assignment.redundancy}"] = oracle.copies(), oracle.plan.threshold
    curves = {code: _curve(*given, truth, context.options.seed) for code, given in codes.items()}
    lines = [
        line
        for colour, (code, curve) in enumerate(curves.items())
        for line in (
            plots.Line(code, list(curve), [100 * mean for mean, _ in curve.values()], colour),
            plots.Line(f"{code}, worst set", list(curve), [100 * worst for _, worst in curve.values()], colour, True),
        )
    ]
    draw = plots.lines(lines, x_label="workers lost", y_label="accuracy, %", y_limits=(0, 102))
    note = (
        f"Mean, and the worst, over all sets of lost workers (at most {MOST_SETS} of each size). Fewer copies than the "
        "bundle has: those of its first offsets, from the same subnets."
    )
    aims = [
        Aim(code, ", ".join(f"{lost}: {mean:.1%}" for lost, (mean, _) in curve.items() if lost <= 4), None)
        for code, curve in curves.items()
    ]
    results = {
        code: {str(lost): {"mean": round(mean, 5), "worst": round(worst, 5)} for lost, (mean, worst) in curve.items()}
        for code, curve in curves.items()
    }
    return Finding(case, aims, results, [Picture("accuracy-curve", "Accuracy with workers lost", draw, note)])


def _fewer_copies(bundle: Bundle, oracle: Oracle) -> Mapping[int, Copies]:
    """All copies, and for a cyclic code those of its first one, two, ... offsets only."""
    copies, manifest = oracle.copies(), bundle.manifest
    r = bundle.assignment.redundancy
    if manifest.kind != "cyclic" or len(manifest.offsets) != r:
        return {r: copies}
    symbol_of = {c: s for s, classes in enumerate(manifest.symbols) for c in classes}
    fewer = {}
    for kept in range(1, r + 1):
        one = np.full_like(copies, np.nan)
        for worker, row in enumerate(bundle.assignment.rows):
            symbols = {(worker + offset) % len(manifest.symbols) for offset in manifest.offsets[:kept]}
            columns = [c for c in row if symbol_of[c] in symbols]
            one[:, worker, columns] = copies[:, worker, columns]
        fewer[kept] = one
    return fewer


def _curve(copies: Copies, threshold: float, truth: npt.NDArray[np.int64], seed: int) -> dict[int, tuple[float, float]]:
    """For each number of lost workers the mean and the least accuracy."""
    n_workers, curve = copies.shape[1], {}
    for lost in range(n_workers + 1):
        values = [
            accuracy(majority(np.delete(copies, chosen, axis=1), threshold), truth)
            for chosen in losses(n_workers, lost, MOST_SETS, seed)
        ]
        curve[lost] = float(np.mean(values)), min(values)
    return curve
