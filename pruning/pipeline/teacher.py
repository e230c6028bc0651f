"""The reference's answers to a few views of every training image, computed once for all networks that learn from them.

A small network's training costs less than the large one's answers to what it is trained on: without this, making ten
subnets of a reference twenty times their size means running the reference most of the time.

RUN/answers/0.npy ...       logits [T, C] of the T images that are trained on, float16, a file a view
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
from pruning.planning.plan import Plan
from pruning.planning.stages import recoveries_of, recovery_images, specialisation
from pruning.progress import OnProgress
from pruning.training.augment import Views, augment, changes
from pruning.training.loop import autocast, use_bf16
from sensai_serve.bundle import atomic_file
from sensai_serve.errors import InputError
from sensai_serve.preprocess import normalise

FOLDER = "answers"
STAGE = "answers of the reference"
BATCH = 256
MOST = 8
"""Views where the recipe does not say how many."""
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Answers:
    """Opened answers."""

    views: Views
    logits: tuple[npt.NDArray[np.float16], ...]
    """[T, C] of each view, mapped from its file."""
    train: Labels
    """[T], which image each row is of."""
    _row: Labels = field(init=False)

    def __post_init__(self) -> None:
        row = np.full(self.views.n_images, -1)
        row[self.train] = np.arange(len(self.train))
        object.__setattr__(self, "_row", row)

    def of(self, indices: Labels, views: Tensor) -> Tensor:
        """Logits FP32 [B, C] for the view [B] of each image [B]."""
        rows, which = self._row[indices], views.numpy()
        found = np.empty((len(rows), self.logits[0].shape[1]), np.float32)
        for view in np.unique(which):
            here = which == view
            found[here] = self.logits[view][rows[here]]
        return torch.from_numpy(found)


def views_of(plan: Plan) -> Views | None:
    """The views that networks of a plan are trained on; None where they are drawn anew each time.

    As many as the recipe says, or up to `MOST` as long as answering them is no more work than answering what is trained
    on; one where nothing is augmented.
    """
    recipe, dataset = plan.recipe, plan.dataset
    if recipe.views == 0 or recipe.distil == 0:
        return None
    count = recipe.views
    if count is None:
        own = sum(specialisation(plan, worker).schedule.images for worker in range(plan.assignment.n_workers))
        count = min((recoveries_of(plan) * recovery_images(plan) + own) // len(plan.train), MOST)
    if not changes(dataset.augmentation, plan.shape):
        count = min(count, 1)
    return Views(count, len(dataset.y), dataset.augmentation, recipe.seed) if count else None


def file_of(folder: Path, view: int) -> Path:
    """Where a view's answers are kept."""
    return folder / f"{view}.npy"


def answer(plan: Plan, folder: Path, on_progress: OnProgress) -> None:
    """Have the reference answer the views that `folder` does not hold yet.

    Args:
        plan: whose views.
        folder: for the answers; a view's file appears whole or not at all.
        on_progress: hears of it.

    Raises:
        WorkError: memory ran out, or the disk is full.
    """
    views = views_of(plan)
    if views is None:
        return
    missing = [view for view in range(views.count) if not file_of(folder, view).exists()]
    folder.mkdir(exist_ok=True)
    ask, dataset = asking(plan), plan.dataset
    for done, view in enumerate(missing):
        logits = np.empty((len(plan.train), plan.dataset.n_classes), np.float16)
        for start in range(0, len(plan.train), BATCH):
            indices = plan.train[start : start + BATCH]
            x = torch.from_numpy(normalise(dataset.x[indices], dataset.spec))
            x = augment(x, dataset.augmentation, views.of(indices, torch.tensor(view)))
            with enough_memory(STAGE, plan.device):
                found = ask(x.to(plan.device))
            logits[start : start + BATCH] = found.clamp(-LARGEST, LARGEST).cpu().numpy()
            on_progress(STAGE, done * len(plan.train) + start, len(missing) * len(plan.train))
        buffer = io.BytesIO()  # numpy loses the reason for which a file cannot be written
        np.save(buffer, logits)
        with enough_disk(folder), atomic_file(file_of(folder, view)) as temporary:
            temporary.write_bytes(buffer.getbuffer())
    if missing:
        on_progress(STAGE, len(missing) * len(plan.train), len(missing) * len(plan.train))


def take_over(there: Path, here: Path) -> None:
    """Have the answers of another run of the same reference, data and seed in `here` too, without computing them."""
    for path in there.glob("*.npy"):
        if (to := here / path.name).exists():
            continue
        here.mkdir(exist_ok=True)
        try:
            os.link(path, to)  # answers are never written to again
        except OSError:  # not on this filesystem
            with enough_disk(to), atomic_file(to) as temporary:
                shutil.copyfile(path, temporary)


def asking(plan: Plan) -> Callable[[Tensor], Tensor]:
    """A function from inputs [B, *shape] to the reference's logits FP32 [B, C]."""
    reference = copy.deepcopy(plan.reference).eval()
    faster = use_bf16(plan.recipe.precision, plan.shape, plan.device)
    if len(plan.shape) == 3:
        reference.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def ask(x: Tensor) -> Tensor:
        with torch.no_grad(), autocast(plan.device, enabled=faster):
            return reference(x).float()  # type: ignore[no-any-return]

    return ask


def open_answers(plan: Plan, folder: Path) -> Answers | None:
    """What `answer` left there; None where networks of the plan are trained without.

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
    return Answers(views, tuple(logits), plan.train)
