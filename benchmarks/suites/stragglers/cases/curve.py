"""Accuracy against lost workers, for one, two, ... copies of each class: the picture of robust class parallelism."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.reporting.aims import Aim
from benchmarks.subjects.oracle import Oracle
from benchmarks.suites.stragglers.cases import CaseResult, Context
from sensai_serve.assignment import Assignment
from sensai_serve.bundles import Bundle
from sensai_serve.merge import MergePlan
from sensai_serve.merge.lost_workers import MOST_SETS, ScoredInputs, accuracy_curve
from sensai_serve.report import Picture, drawing


def run(context: Context) -> CaseResult:
    """Compute the curve in this process, from the scores of the bundle's own ONNX files."""
    truth, name = context.data.labels, context.bundle.manifest.name
    case = "accuracy with workers lost, by redundancy"
    if truth is None:
        return CaseResult(case, [Aim("accuracy curve", "no labels given: --data", None)], {})
    if not hasattr(context.oracle.plan.rule_type, "merge_many"):  # thousands of merges of every input
        return CaseResult(case, [Aim("accuracy curve", f"not for {context.bundle.manifest.merge.rule}", None)], {})
    codes: dict[str, ScoredInputs] = {}
    if context.beside:  # each as it was trained
        bundles = sorted([context.bundle, *context.beside], key=lambda bundle: bundle.assignment.redundancy)
        for bundle in bundles:
            oracle = context.oracle if bundle is context.bundle else Oracle(bundle, context.data.inputs)
            code = f"{bundle.manifest.name}, r = {bundle.assignment.redundancy}"
            codes[code] = oracle.scored()
    else:
        for r, scored in _fewer_copies(context.bundle, context.oracle).items():
            codes[f"{name}, r = {r}"] = scored
    curves = {code: accuracy_curve(given, truth, seed=context.options.seed) for code, given in codes.items()}
    drawn = []
    for colour, (code, curve) in enumerate(curves.items()):
        x = [at.lost for at in curve]
        drawn.append(drawing.Line(code, x, [100 * at.mean for at in curve], colour))
        drawn.append(drawing.Line(f"{code}, worst set", x, [100 * at.worst for at in curve], colour, dashed=True))
    draw = drawing.lines(drawn, x_label="workers lost", y_label="accuracy, %", y_limits=(0, 102))
    note = f"Mean, and the worst, over all sets of lost workers (at most {MOST_SETS} of each size)."
    if not context.beside:
        note += " Fewer copies than the bundle has: those of its first offsets, from the same subnets."
    aims = [
        Aim(code, ", ".join(f"{at.lost}: {at.mean:.1%}" for at in curve if at.lost <= 4), None)
        for code, curve in curves.items()
    ]
    results = {
        code: {str(at.lost): {"mean": round(at.mean, 5), "worst": round(at.worst, 5)} for at in curve}
        for code, curve in curves.items()
    }
    return CaseResult(case, aims, results, [Picture("accuracy-curve", "Accuracy with workers lost", draw, note)])


def _fewer_copies(bundle: Bundle, oracle: Oracle) -> Mapping[int, ScoredInputs]:
    """All copies, and for a cyclic code those of its first one, two, ... offsets only; by redundancy."""
    manifest, r = bundle.manifest, bundle.assignment.redundancy
    if manifest.kind != "cyclic" or len(manifest.offsets) != r:
        return {r: oracle.scored()}
    symbol_of = {c: s for s, classes in enumerate(manifest.symbols) for c in classes}
    fewer = {}
    for kept in range(1, r + 1):
        rows, scores = [], []
        for worker, row in enumerate(bundle.assignment.rows):
            symbols = {(worker + offset) % len(manifest.symbols) for offset in manifest.offsets[:kept]}
            columns = [at for at, c in enumerate(row) if symbol_of[c] in symbols]
            rows.append(tuple(row[at] for at in columns))
            scores.append(oracle.scores[worker][:, columns])
        plan = MergePlan(Assignment(tuple(rows), bundle.assignment.n_classes), oracle.plan.rule, oracle.plan.threshold)
        fewer[kept] = ScoredInputs(plan, scores)
    return fewer
