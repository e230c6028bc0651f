"""Tries on the reference and on one cut network all that a run will do to networks, before any of it takes long."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from pruning import heads
from pruning.cutting.cut import apply_cut
from pruning.cutting.graph import output_layer, watching
from pruning.cutting.ratios import cut_to_ratio
from pruning.cutting.size import measure
from pruning.heads import replace_output
from pruning.limits import enough_memory, is_out_of_memory
from pruning.models import kind_of
from pruning.pipeline.subnet import labels_as
from pruning.planning.plan import RunPlan
from pruning.planning.stages import specialisation
from pruning.run import REFERENCE, Network, Run
from pruning.selection.source import SourceNetwork, equal_importance
from pruning.training.loop import Schedule, Trainer
from pruning.training.optimisers import RETRAINING
from sensai_serve.errors import ModelError, SensaiError, first_line
from sensai_serve.preprocess import Floats, normalise
from sensai_serve.progress import OnProgress, silent
from sensai_serve.tensors import Inputs

TryExport = Callable[[Run, str, Inputs], None]
"""Exports the network of that name in a run and compares it with torch on inputs; raises ModelError."""

STAGE = "try out"
"""Name of the progress stage."""
RATIO = 0.5
"""Fraction of every channel group that the cut network lacks."""
INPUTS = 4
TOLERANCE = 1e-3
"""The largest difference of a logit between a network and itself read back, relative to the largest logit."""


def rehearse(source: SourceNetwork, try_export: TryExport | None, on_progress: OnProgress = silent) -> None:
    """Cut, save, read back, train for one step and export; nothing is kept.

    What fails here would fail later, after the training.

    Args:
        source: the reference of a plan.
        try_export: exports a network of a run; None: that is not tried.
        on_progress: called with the steps done and in all, in the stage `STAGE`.

    Raises:
        ModelError: the network does not allow one of them; names the module.
        WorkError: memory or the disk is full.
    """
    plan = source.plan
    steps = 3 if try_export is None else 5
    raw = plan.dataset.x[plan.train[:INPUTS]]
    inputs = normalise(raw, plan.dataset.spec)
    on_progress(STAGE, 0, steps)
    with enough_memory(STAGE, plan.device), tempfile.TemporaryDirectory(prefix="sensai-") as folder:
        network, record = _cut(source)
        on_progress(STAGE, 1, steps)
        run = Run(
            Path(folder) / "run",
            plan.recipe,
            plan.digests,
            plan.dataset.labels,
            plan.dataset.spec,
            plan.assignment,
            plan.budget,
            plan.dataset.inputs,
        )
        with _refused(plan.reference, "cannot be saved and read back", "a state dict of tensors"):
            run.create(plan.reference, plan.size, plan.dataset)
            run.save(run.folder(0), record, network)
            _check_same(plan.reference, run.load(REFERENCE).network, inputs)
            _check_same(network, run.load(run.folder(0)).network, inputs)
        on_progress(STAGE, 2, steps)
        _train(plan, network, record, inputs)
        on_progress(STAGE, 3, steps)
        if try_export is not None:
            for done, name in enumerate((REFERENCE, run.folder(0)), start=4):
                try_export(run, name, plan.dataset.prepared(raw))
                on_progress(STAGE, done, steps)


def _cut(source: SourceNetwork) -> tuple[nn.Module, Network]:
    """A network for the first worker's classes with a half of every channel group, and how to rebuild it."""
    plan, whole = source.plan, source.network
    stage = specialisation(plan, 0)
    output = output_layer(whole, plan.shape)
    groups = source.without(()).groups
    cut = cut_to_ratio(groups, equal_importance(groups), RATIO)
    network = apply_cut(whole, cut, plan.shape)
    replace_output(network, output, heads.find(stage.head, plan.recipe.task), stage.classes)
    outputs = len(network.get_submodule(output).weight)  # type: ignore[arg-type]
    with watching(network) as running, _refused(network, "does not run once it is cut", "sizes that follow", running):
        with torch.no_grad():
            shape = network(torch.zeros(2, *plan.shape, device=plan.device)).shape
        if shape != (2, outputs):
            raise ModelError(
                f"model: with {outputs} outputs in {output}, {kind_of(whole)} gives {['N', *shape[1:]]}, "
                f"expected [N, {outputs}]: logits that are the outputs of a last Linear or Conv2d layer"
            )
    size = measure(network, plan.shape)
    return network, Network(stage.classes, stage.head, cut, size.macs, size.parameters)


def _train(plan: RunPlan, network: nn.Module, record: Network, inputs: Floats) -> None:
    """Train a copy for one step and let it answer afterwards."""
    head, trained = heads.find(record.head, plan.recipe.task), copy.deepcopy(network).requires_grad_(True)
    y = torch.from_numpy(plan.dataset.y[plan.train[: len(inputs)]]).to(plan.device)
    targets = labels_as(head, plan, record.classes, y)
    x = torch.from_numpy(inputs).to(plan.device)
    with (
        watching(trained) as running,
        torch.random.fork_rng(devices=[]),
        _refused(trained, "cannot be trained", "logits that gradients pass in training mode", running),
    ):
        recipe = plan.recipe
        schedule = Schedule(2 * len(inputs), recipe.rate or RETRAINING, len(inputs), recipe.optimiser)
        trainer = Trainer(trained, schedule, plan.shape, "fp32")
        trainer.step(head.loss(trainer.forward(x), targets))
        trainer.finish()
        with torch.no_grad():
            trained(x)


def _check_same(network: nn.Module, again: nn.Module, inputs: Floats) -> None:
    """Raise ModelError unless a network that was read back answers as the one that was written."""
    x = torch.from_numpy(inputs)
    with torch.no_grad():
        expected = copy.deepcopy(network).cpu().eval()(x)  # a card's convolutions round to TF32, ten bits
        off = (again(x) - expected).abs().max() / expected.abs().max().clamp(min=1)
    if not off <= TOLERANCE:
        raise ModelError(
            f"model: {kind_of(network)} answers otherwise once it is saved and read back, expected all that its "
            "answers depend on in its state dict, and to be built the same each time"
        )


@contextmanager
def _refused(model: nn.Module, what: str, expected: str, running: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn whatever a network's code raises while the block runs into one line."""
    try:
        yield
    except SensaiError:
        raise
    except Exception as error:  # whatever the network's code raises
        if is_out_of_memory(error):
            raise
        where = running() if running else kind_of(model)
        raise ModelError(f"model: {where} {what} ({first_line(error)}), expected {expected}") from None
