"""Builds the networks of the points of ``sensai compare``; what two points have in common is made once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pruning.comparison.points import Point
from pruning.executors import ExecutorTask, Slot
from pruning.executors.local import execute
from pruning.limits import enough_disk
from pruning.pipeline.builder import network_task
from pruning.pipeline.prune import check_cuts, prune_reference
from pruning.pipeline.teacher import FOLDER, compute_teacher_logits, reuse_teacher_logits
from pruning.planning.plan import RunPlan, check_scores, groups_of
from pruning.planning.stages import recovered
from pruning.run import Run, finished
from pruning.selection.source import reference_source
from sensai_serve import assignment, plugins
from sensai_serve.bundles import atomic_directory
from sensai_serve.progress import OnProgress


@dataclass(frozen=True)
class PointBuilder:
    """Builds the networks of points, each point a run directory of its own."""

    plan: RunPlan
    """The plan of the recipe that all points have in common."""
    folder: Path
    """Holds one directory per point."""
    slots: tuple[Slot, ...] = ()
    _groups: dict[tuple[str, int | None], list[list[int]]] = field(default_factory=dict)

    def check(self, every: Sequence[Point], on_progress: OnProgress) -> None:
        """Check the points before any is made: their groups, their heads, and the cut of the smallest size.

        Args:
            every: all points.
            on_progress: called with progress.

        Raises:
            SensaiError: a point cannot be made, or its directory holds something else.
        """
        plugins.find("pruning.grouping", self.plan.recipe.grouping, "group")  # also where no point has groups
        begun = [Run.resume(self.run_of(one), one.recipe, self.plan.digests) is not None for one in every]
        plans = {one.name: self.plan_of(one) for one in every}
        smallest = min(every, key=lambda one: (one.amount, -one.workers))
        if not all(begun):
            plan = plans[smallest.name]
            check_cuts(reference_source(plan, on_progress))

    def plan_of(self, point: Point) -> RunPlan:
        """The plan of one point: the common data and reference, the point's recipe and assignment."""
        recipe, dataset = point.recipe, self.plan.dataset
        groups = None if recipe.groups is None else self._groups_of(point)
        matrix = assignment.build(recipe.assignment, dataset.n_classes, groups=groups, redundancy=recipe.redundancy)
        check_scores(recipe, matrix)
        return replace(self.plan, recipe=recipe, assignment=matrix, budget=recipe.budget)

    def _groups_of(self, point: Point) -> list[list[int]]:
        """The groups of all points that have as many: those that one of them was begun with, else computed once."""
        recipe = point.recipe
        key = recipe.grouping, recipe.groups
        if key not in self._groups:
            begun = Run.resume(self.run_of(point), recipe, self.plan.digests)
            if begun is not None:  # no need to run the reference over all images again
                self._groups[key] = [list(symbol) for symbol in begun.assignment.symbols]
            else:
                self._groups[key] = groups_of(recipe, self.plan.dataset, self.plan.reference) or []
        return self._groups[key]

    def run_of(self, point: Point) -> Path:
        """Path of a point's run directory."""
        return self.folder / point.name / "run"

    def begin(self, every: Sequence[Point], on_progress: OnProgress) -> None:
        """Make the networks that depend on no other, several at a time: monoliths, and each size's shared recovery.

        Does nothing with fewer than two slots.

        Args:
            every: all points.
            on_progress: called with progress.

        Raises:
            SensaiError: as `pruning.pipeline.prune.prune_reference`.
        """
        if len(self.slots) < 2:
            return
        tasks: dict[tuple[float, bool, int | None, int], ExecutorTask] = {}
        for one in every:
            run = self.open(one, every)
            images = one.recipe.images if one.alone else one.recipe.recover_images
            for number, name in enumerate([run.folder(0)] if one.alone else _recoveries(one)):
                key = one.amount, one.alone, images, number
                if not run.has(name) and key not in tasks:
                    compute_teacher_logits(self.plan_of(one), run.path / FOLDER, on_progress)
                    worker = 0 if one.alone else None
                    tasks[key] = network_task(
                        run, self.plan.recipe.data, worker=worker, recovery=number, label=f"{one.name}:"
                    )
        execute(list(tasks.values()), self.slots, on_progress)

    def make(self, point: Point, others: Sequence[Point], on_progress: OnProgress) -> Run:
        """Prune and retrain what the point's run does not hold yet.

        Args:
            point: the point to make.
            others: points whose teacher logits and shared recovery are reused where they are the same and finished.
            on_progress: called with progress.

        Raises:
            SensaiError: as `pruning.pipeline.prune.prune_reference`.
        """
        plan, path = self.plan_of(point), self.open(point, others).path
        run = prune_reference(plan, path, slots=self.slots, on_progress=on_progress)
        return replace(run, recipe=plan.recipe)  # this one says where the data lies now

    def left(self, point: Point) -> int:
        """Image passes of the networks that the point's run, which must be open, still lacks."""
        run, recipe = Run.open(self.run_of(point)), point.recipe
        shared = sum(recipe.recover_images or 0 for name in _recoveries(point) if not run.has(name))
        workers = range(run.assignment.n_workers)
        own = sum(recipe.images or 0 for worker in workers if not run.has(run.apart(worker)))
        joint = sum(recipe.joint_images for worker in workers if not run.has(run.folder(worker)))
        return shared + own + joint

    def open(self, point: Point, others: Sequence[Point]) -> Run:
        """The point's run, begun if it was not, with what it can reuse of other points.

        Args:
            point: the point whose run is opened.
            others: points whose teacher logits and shared recovery are reused where they are the same and finished.

        Raises:
            OutputExistsError: its directory holds something else.
            WorkError: the disk is full.
        """
        plan, path = self.plan_of(point), self.run_of(point)
        run = Run.resume(path, plan.recipe, plan.digests)
        if run is None:
            dataset = plan.dataset
            task = (dataset.labels, dataset.spec, plan.assignment, plan.budget, dataset.inputs)
            run = Run(path, plan.recipe, plan.digests, *task)
            run.create(plan.reference, plan.size, plan.dataset)
        for other in others:
            reuse_teacher_logits(self.run_of(other) / FOLDER, path / FOLDER)
        same = [o for o in others if (o.amount, o.recipe.recover_images) == (point.amount, point.recipe.recover_images)]
        for name in _recoveries(point):
            ready = next((there for o in same if finished(there := self.run_of(o) / name)), None)
            if ready is not None and not run.has(name):
                with enough_disk(path / name), atomic_directory(path / name) as temporary:
                    for file in ready.iterdir():
                        shutil.copyfile(file, temporary / file.name)
        return run


def _recoveries(point: Point) -> list[str]:
    """Names of the networks for all classes that the point's workers are made of."""
    return [recovered(number) for number in range(point.recipe.recoveries)] if point.recipe.recover_images else []
