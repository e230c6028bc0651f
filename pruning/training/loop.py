"""The training loop, for a reference, a compact network for all classes, and every worker's subnet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.data import Dataset, Labels
from pruning.recipe import Optimiser, Precision
from pruning.training.augment import Views
from pruning.training.batches import Batch, Batches
from pruning.training.graphs import Forward, record
from pruning.training.layout import suited_layout
from pruning.training.modes import into_training
from pruning.training.optimisers import Rates, make_optimiser, suited
from pruning.training.snapshot import Snapshot
from sensai_serve.errors import DeviceError, WorkError, first_line
from sensai_serve.preprocess import Floats, normalise

Loss = Callable[[Batch, Tensor], Tensor]
"""Gives the loss, a scalar, from a batch and the network's logits [B, outputs] for it."""
OnStep = Callable[[int, int], None]
"""Called with images done and images in all."""


SMALL = 512
"""Number of values in an input below which one CPU thread is the fastest."""
THIN = 1_000_000
"""MACs in a layer, on average, below which several threads wait for each other more than they compute: a third of a
ResNet-20 is a fifth slower on two threads than on one, and three times where other work takes a share of the cores."""


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a training."""

    images: int
    """Image passes in all, which the work is proportional to."""
    rate: float | Rates
    """Peak of the one-cycle learning rate, or what it is by optimiser."""
    batch: int = 128
    optimiser: Optimiser = "auto"
    """``auto``: by the network's layers, `pruning.training.optimisers.suited`."""
    weight_decay: float = 5e-4
    """Of SGD."""
    warm_up: float = 0.2
    """Fraction of the steps before the peak."""


def fit(
    model: nn.Module,
    dataset: Dataset,
    *,
    batches: Iterator[Labels],
    loss: Loss,
    schedule: Schedule,
    seed: int,
    precision: Precision = "auto",
    views: Views | None = None,
    threads: int | None = None,
    on_step: OnStep = lambda done, total: None,
    snapshot: Snapshot | None = None,
) -> None:
    """Train `model` in place: stochastic gradient descent with Nesterov momentum or AdamW, one-cycle learning rate.

    Args:
        model: gives logits [N, outputs] for inputs [N, *shape].
        dataset: raw images, normalised and augmented here, batch by batch.
        batches: an endless iterator of the training images of each step.
        loss: the loss that is minimised.
        schedule: image passes and learning rate.
        seed: seed of augmentation, and of dropout where the network has it.
        precision: ``bf16`` computes in bfloat16; ``auto`` does where it pays.
        views: fixed views of each image, one of which is drawn at random; None: each image is augmented anew.
        threads: CPU threads during the training; None: as many as torch has.
        on_step: called with images done and images in all.
        snapshot: keeps an unfinished training, which goes on from it; the caller clears it.

    Raises:
        OutputExistsError: the snapshot is of another recipe.
        InputError: the snapshot cannot be read.
        WorkError: the training diverged, or the disk is full.
    """
    device = next(model.parameters()).device
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    steps = math.ceil(schedule.images / schedule.batch)
    if not steps:
        model.eval()
        return
    trainer = Trainer(model, schedule, dataset.spec.shape, precision)
    done = snapshot.restore(trainer, generator) if snapshot else 0
    images = Batches(dataset, views, device, generator)
    with on_threads(threads):
        for step, indices in enumerate(islice(batches, done, steps), start=done + 1):
            batch = images.make(indices)
            trainer.step(loss(batch, trainer.forward(batch.x)))
            on_step(step * schedule.batch, steps * schedule.batch)
            if snapshot and snapshot.is_due():
                check_finite(model)
                snapshot.write(step, trainer, generator)
    trainer.finish()


class Trainer:
    """One network in training: its forward pass, and its optimiser's steps.

    The optimiser is SGD with Nesterov momentum or AdamW, under a one-cycle learning rate; biases and normalisations do
    not decay.
    """

    def __init__(self, model: nn.Module, schedule: Schedule, shape: tuple[int, ...], precision: Precision) -> None:
        """Put `model` into training mode.

        Args:
            model: trained in place; inputs [B, *shape] to logits [B, outputs].
            schedule: image passes and learning rate.
            shape: of one input.
            precision: ``bf16`` computes in bfloat16; ``auto`` does where it pays.
        """
        self.model = model
        self._device = next(model.parameters()).device
        self._faster = use_bf16(precision, shape, self._device)
        into_training(model, shape)
        self._layout = suited_layout(model, shape, bf16=self._faster)
        model.to(memory_format=self._layout)  # type: ignore[call-overload]
        on_card = self._device.type == "cuda"
        kind = suited(model, schedule.optimiser)
        rate = getattr(schedule.rate, kind) if isinstance(schedule.rate, Rates) else schedule.rate
        self.optimiser = make_optimiser(model, kind, rate, sgd_decay=schedule.weight_decay, fused=on_card)
        steps = math.ceil(schedule.images / schedule.batch)
        self._record = on_card
        self._recorded: Forward | None = None
        self._recorded_shape: torch.Size | None = None
        warm_up = max(schedule.warm_up, 1.5 / (steps + 1))  # OneCycleLR divides by the length of it less one step
        self.cycle = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, rate, total_steps=steps + 1, pct_start=warm_up, cycle_momentum=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits FP32 [B, outputs] for inputs [B, *shape]."""
        x = x.contiguous(memory_format=self._layout)
        if self._record:
            self._record, self._recorded_shape = False, x.shape
            self._recorded = record(self.model, x, bf16=self._faster)
        if self._recorded is not None and x.shape == self._recorded_shape:
            return self._recorded(x)
        with autocast(self._device, enabled=self._faster):
            logits: Tensor = self.model(x)
        return logits.float()

    def step(self, loss: Tensor, gradient: Tensor | None = None) -> None:
        """Go one step down the gradient of `loss`, a scalar; or of a tensor whose own gradient is `gradient`."""
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss, gradient)
        self.optimiser.step()
        self.cycle.step()

    def finish(self) -> None:
        """Leave the network as it is used: in evaluation mode, with the usual memory layout.

        Raises:
            WorkError: the training diverged.
        """
        check_finite(self.model)
        self._recorded = None  # it holds addresses of weights
        self.model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


def check_finite(model: nn.Module) -> None:
    """Check that a network in training still has numbers: what has become NaN stays so.

    Raises:
        WorkError: it has none.
    """
    if all(bool(torch.isfinite(weights).all()) for weights in model.parameters()):
        return
    raise WorkError(
        "the training diverged: weights are NaN or infinite, expected finite numbers; a lower learning rate (--rate, "
        "--recover-rate or --joint-rate) helps, in a new run"
    )


def infer(model: nn.Module, dataset: Dataset, raw: Any, *, precision: Precision = "fp32", batch: int = 256) -> Floats:
    """Outputs FP32 [N, k] of `model` for raw inputs [N, *shape]."""
    device = next(model.parameters()).device
    faster = use_bf16(precision, dataset.spec.shape, device)
    model.eval()
    outputs = []
    with torch.inference_mode(), autocast(device, enabled=faster):
        for start in range(0, len(raw), batch):
            x = torch.from_numpy(normalise(raw[start : start + batch], dataset.spec)).to(device)
            outputs.append(model(x).float().cpu().numpy())
    return np.concatenate(outputs)


def use_bf16(precision: Precision, shape: tuple[int, ...], device: torch.device) -> bool:
    """Whether to compute in bfloat16: where asked, or where the device is fast at it and the pictures are not tiny."""
    if precision != "auto":
        return precision == "bf16"
    if len(shape) != 3 or shape[1] * shape[2] < 16 * 16:
        return False
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def use_threads(threads: int | None, shape: tuple[int, ...]) -> None:
    """Let torch compute on so many CPU threads; None: all cores, or one where inputs [*shape] are so small that several
    threads would wait for each other more than they compute.
    """
    if threads is None and math.prod(shape) < SMALL:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)


@contextmanager
def on_threads(threads: int | None) -> Iterator[None]:
    """Have torch compute on so many CPU threads while the block runs; None: on as many as it has."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_for(model: nn.Module, macs: int) -> int:
    """CPU threads to train on where nobody says how many.

    Args:
        model: the network.
        macs: MACs of all its layers for one input.
    """
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
    return 1 if macs < THIN * layers else torch.get_num_threads()


def require_device(device: str) -> None:
    """Check that torch can compute there.

    Raises:
        DeviceError: torch cannot compute there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by how it was built
        raise DeviceError(f"--device {device}: torch cannot use it here ({first_line(error)})") from None


def autocast(device: torch.device, *, enabled: bool) -> AbstractContextManager[Any]:
    """bfloat16 where it is safe, while the block runs."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()
