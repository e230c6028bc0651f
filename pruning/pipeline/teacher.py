"""Teacher logits: the reference's logits for a few views of every training image, computed once for all networks.

A step of training a small network costs less than one pass through the reference. Without this, making ten subnets of a
reference twenty times their size would mean running the reference most of the time.

RUN/teacher-logits/0.npy ...   logits [T, C] of the T images that are trained on, float16, one file per view
"""

from __future__ import annotations

import copy
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pruning.data import Labels
from pruning.limits import enough_disk, enough_memory
from pruning.planning.plan import RunPlan
from pruning.planning.stages import recoveries_of, recovery_images, specialisation
from pruning.training.augment import Views, changes
from pruning.training.batches import Batches, fits
from pruning.training.layout import suited_layout
from pruning.training.loop import autocast, use_bf16
from sensai_serve.bundles import atomic_file
from sensai_serve.errors import InputError
from sensai_serve.progress import OnProgress

FOLDER = "teacher-logits"
"""Name of the folder in a run directory."""
STAGE = "teacher logits"
"""Name of the progress stage."""
BATCH = 256
MAX_VIEWS = 8
"""The most views where the recipe does not say how many."""
LARGEST = float(np.finfo(np.float16).max)
"""Logits are clipped to this magnitude."""

Teacher = Callable[[Tensor], Tensor]
"""Gives logits FP32 [B, C] for inputs [B, *shape]."""


@dataclass(frozen=True)
class TeacherLogits:
    """The teacher logits of a run, opened."""

    views: Views
    logits: tuple[npt.NDArray[np.float16], ...]
    """Logits [T, C] of each view, mapped from its file."""
    train: Labels
    """[T], index of the image that each row belongs to."""
    _row: Labels = field(init=False)
    _copies: dict[torch.device, tuple[Tensor, Tensor] | None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        row = np.full(self.views.n_images, -1)
        row[self.train] = np.arange(len(self.train))
        object.__setattr__(self, "_row", row)

    def of(self, indices: Tensor, views: Tensor) -> Tensor:
        """Logits FP32 [B, C] of one view of each image, on the device of the indices.

        Args:
            indices: [B] images of the training part.
            views: [B] number of the view of each.
        """
        if (there := self._on(indices.device)) is not None:
            logits, row = there
            return logits[views, row[indices]].float()
        rows, which = self._row[indices.cpu().numpy()], views.cpu().numpy()
        found = np.empty((len(rows), self.logits[0].shape[1]), np.float32)
        for view in np.unique(which):
            here = which == view
            found[here] = self.logits[view][rows[here]]
        return torch.from_numpy(found).to(indices.device)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """The logits [V, T, C] of all views, and the row of each image, on a card; None where it does not hold them."""
        if device not in self._copies:
            size, copied = sum(of_view.nbytes for of_view in self.logits), None
            if fits(size, device):
                logits = torch.stack([torch.from_numpy(np.array(of_view)) for of_view in self.logits])
                copied = logits.to(device), torch.from_numpy(self._row).to(device)
            self._copies[device] = copied
        return self._copies[device]


def views_of(plan: RunPlan) -> Views | None:
    """The views that networks of a plan are trained on; None where they are drawn anew in every step.

    There are as many as the recipe says. Where it does not say, there are at most `MAX_VIEWS`, and no more than the
    passes through the reference pay for. Where nothing is augmented there is one.
    """
    recipe, dataset = plan.recipe, plan.dataset
    if recipe.views == 0 or recipe.distil == 0:
        return None
    count = recipe.views
    if count is None:
        own = sum(specialisation(plan, worker).schedule.images for worker in range(plan.assignment.n_workers))
        count = min((recoveries_of(plan) * recovery_images(plan) + own) // len(plan.train), MAX_VIEWS)
    if not changes(dataset.augmentation, plan.shape):
        count = min(count, 1)
    return Views(count, len(dataset.y), dataset.augmentation, recipe.seed) if count else None


def file_of(folder: Path, view: int) -> Path:
    """Path of the file with a view's logits."""
    return folder / f"{view}.npy"


def compute_teacher_logits(plan: RunPlan, folder: Path, on_progress: OnProgress) -> None:
    """Compute the logits of the views that `folder` does not hold yet.

    Args:
        plan: says which views there are.
        folder: where the logits go; a view's file appears whole or not at all.
        on_progress: called with images done and images in all, in the stage `STAGE`.

    Raises:
        WorkError: memory ran out, or the disk is full.
    """
    views = views_of(plan)
    if views is None:
        return
    missing = [view for view in range(views.count) if not file_of(folder, view).exists()]
    folder.mkdir(exist_ok=True)
    teacher, images = make_teacher(plan), Batches(plan.dataset, views, plan.device)
    for done, view in enumerate(missing):
        logits = np.empty((len(plan.train), plan.dataset.n_classes), np.float16)
        for start in range(0, len(plan.train), BATCH):
            indices = plan.train[start : start + BATCH]
            with enough_memory(STAGE, plan.device):
                found = teacher(images.of(indices, torch.full((len(indices),), view)).x)
            logits[start : start + BATCH] = found.clamp(-LARGEST, LARGEST).cpu().numpy()
            on_progress(STAGE, done * len(plan.train) + start, len(missing) * len(plan.train))
        buffer = io.BytesIO()  # numpy loses the reason for which a file cannot be written
        np.save(buffer, logits)
        with enough_disk(folder), atomic_file(file_of(folder, view)) as temporary:
            temporary.write_bytes(buffer.getbuffer())
    if missing:
        on_progress(STAGE, len(missing) * len(plan.train), len(missing) * len(plan.train))


def reuse_teacher_logits(there: Path, here: Path) -> None:
    """Link or copy the teacher logits of another run of the same reference, data and seed, rather than compute them.

    Args:
        there: folder of the other run's logits; it may be missing.
        here: folder of this run's; files that it holds stay as they are.

    Raises:
        WorkError: the disk is full.
    """
    for path in there.glob("*.npy"):
        if (to := here / path.name).exists():
            continue
        here.mkdir(exist_ok=True)
        try:
            os.link(path, to)  # never written to again
        except OSError:  # not on this filesystem
            with enough_disk(to), atomic_file(to) as temporary:
                shutil.copyfile(path, temporary)


def make_teacher(plan: RunPlan) -> Teacher:
    """The reference as a function from inputs [B, *shape] to logits FP32 [B, C], in the precision of the recipe."""
    reference = copy.deepcopy(plan.reference).eval()
    faster = use_bf16(plan.recipe.precision, plan.shape, plan.device)
    layout = suited_layout(reference, plan.shape, bf16=faster)
    reference.to(memory_format=layout)  # type: ignore[call-overload]

    def teacher(x: Tensor) -> Tensor:
        with torch.no_grad(), autocast(plan.device, enabled=faster):
            return reference(x.contiguous(memory_format=layout)).float()  # type: ignore[no-any-return]

    return teacher


def answering_once(teacher: Teacher) -> Teacher:
    """The same teacher, asked once where several ask for the same batch one after the other."""
    last: list[Tensor] = []

    def once(x: Tensor) -> Tensor:
        if not last or last[0] is not x:
            last[:] = x, teacher(x)
        return last[1]

    return once


def open_teacher_logits(plan: RunPlan, folder: Path) -> TeacherLogits | None:
    """Open what `compute_teacher_logits` wrote; None where networks of the plan are trained without.

    Raises:
        InputError: a file is missing or damaged.
    """
    views = views_of(plan)
    if views is None:
        return None
    logits, expected = [], (len(plan.train), plan.dataset.n_classes)
    for view in range(views.count):
        path = file_of(folder, view)
        try:
            logits.append(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} cannot be read ({error}); remove it, and it is made again") from None
        if logits[-1].shape != expected:
            raise InputError(f"{path} holds {list(logits[-1].shape)}, expected {list(expected)}; remove it")
    return TeacherLogits(views, tuple(logits), plan.train)
