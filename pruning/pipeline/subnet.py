"""Makes one network for some classes: cut, reconstruct its layers, give it a head, retrain, calibrate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning import heads
from pruning.cutting.channels import kept_outputs
from pruning.cutting.cut import Cut, apply_cut, compose
from pruning.cutting.graph import output_layer
from pruning.cutting.reconstruct import reconstruct
from pruning.cutting.size import measure
from pruning.heads import Head, Subnet, replace_output
from pruning.pipeline.teacher import Teacher, TeacherLogits, make_teacher
from pruning.planning.plan import RunPlan
from pruning.planning.stages import Stage
from pruning.run import Network
from pruning.selection.choose import choose_cut
from pruning.selection.source import SourceNetwork, Trimmed
from pruning.training.batches import Batch
from pruning.training.calibrate import fit_scale, fold_scale
from pruning.training.loop import Loss, fit, infer, threads_for
from pruning.training.snapshot import Snapshot
from sensai_serve import plugins
from sensai_serve.preprocess import Floats, normalise

CERTAIN = 50.0
"""The logit that stands for certainty where labels are written as logits."""


def make_network(
    source: SourceNetwork, teacher_logits: TeacherLogits | None, stage: Stage, snapshot: Snapshot
) -> tuple[Network, nn.Module, Floats]:
    """Cut a network for some classes out of `base`, reconstruct what its layers made, give it a head, and retrain it.

    Args:
        source: the network that it is cut from.
        teacher_logits: the reference's logits for what it is trained on; None: computed in every step.
        stage: what the network is for and how it is retrained.
        snapshot: keeps the retraining while it is unfinished.

    Raises:
        ModelError: the cut cannot be made.

    Returns:
        How to rebuild it, the network, and its scores [V, k] of the validation part.
    """
    plan, dataset, head = source.plan, source.plan.dataset, heads.find(stage.head, source.plan.recipe.task)
    network, trimmed, cut = cut_network(source, stage)
    batches = plugins.find("pruning.sampling", stage.sampling, "batches")(
        dataset.y, plan.train, stage.classes, stage.schedule.batch, np.random.default_rng(stage.seed)
    )
    smaller = trimmed.removed or any(len(cut[group.layer]) < group.channels for group in trimmed.groups)
    if plan.recipe.reconstruct_images and smaller:
        n_batches = math.ceil(plan.recipe.reconstruct_images / stage.schedule.batch)
        indices = np.concatenate(list(islice(batches, n_batches)))
        inputs = torch.from_numpy(normalise(dataset.x[indices], dataset.spec)).to(plan.device)
        reconstruct(network, source.network, kept_outputs(trimmed.groups, cut), inputs)
    output = output_layer(source.network, plan.shape)
    replace_output(network, output, head, stage.classes)
    network.requires_grad_(True)
    fit(
        network,
        dataset,
        batches=batches,
        loss=distillation(plan, head, stage.classes, teacher_logits),
        schedule=stage.schedule,
        seed=stage.seed,
        precision=plan.recipe.precision,
        views=None if teacher_logits is None else teacher_logits.views,
        threads=plan.threads or threads_for(network, measure(network, plan.shape).macs),
        on_step=lambda done, total: source.on_progress(stage.name, done, total),
        snapshot=snapshot,
    )
    if stage.calibration == "temperature":
        calibrate(plan, network, output, head, stage.classes)
    subnet = Subnet(network, head)
    size = measure(subnet, plan.shape)
    cut, removed = compose(source.kept_outputs, cut), source.removed + trimmed.removed
    made = Network(stage.classes, stage.head, cut, size.macs, size.parameters, removed)
    return made, network, infer(subnet, dataset, dataset.x[plan.validation])


def calibrate(plan: RunPlan, network: nn.Module, output: str, head: Head, classes: Sequence[int]) -> None:
    """Scale a network's logits so that its scores fit the labels of the validation part.

    Args:
        plan: of the run.
        network: changed in place.
        output: name of its output layer.
        head: of the network.
        classes: that it scores.
    """
    logits = torch.from_numpy(infer(network, plan.dataset, plan.dataset.x[plan.validation]))
    scale = fit_scale(head, logits, labels_as(head, plan, classes, torch.from_numpy(plan.dataset.y[plan.validation])))
    fold_scale(network.get_submodule(output), scale)


def cut_network(source: SourceNetwork, stage: Stage) -> tuple[nn.Module, Trimmed, Cut]:
    """Cut a network for a stage; its output layer is still the source's.

    Raises:
        ModelError: the cut cannot be made.
    """
    trimmed, cut = choose_cut(source, stage.amount, stage.depth, stage.classes, exact=stage.further)
    return apply_cut(trimmed.network, cut, source.plan.shape), trimmed, cut


def labels_as(head: Head, plan: RunPlan, classes: Sequence[int], y: Tensor) -> Tensor:
    """Labels as a head's probabilities [B, outputs].

    Args:
        head: the head.
        plan: of the run.
        classes: that the head scores.
        y: labels [B], or 0 and 1 [B, C]; not those of all images at once, of which C columns may be gigabytes.
    """
    certain = 2 * y - 1 if plan.recipe.task == "multilabel" else F.one_hot(y, plan.dataset.n_classes)
    return head.probabilities(head.own_logits(CERTAIN * certain.float(), classes))


def distillation(
    plan: RunPlan,
    head: Head,
    classes: Sequence[int],
    teacher_logits: TeacherLogits | None,
    teacher: Teacher | None = None,
) -> Loss:
    """The loss of a network for `classes`: against the reference's logits for the same views, and against the labels.

    Args:
        plan: the plan of the run.
        head: the network's head.
        classes: the classes that it scores.
        teacher_logits: the reference's logits; None: computed in every step.
        teacher: computes them; None: a copy of the reference for this loss alone.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, https://arxiv.org/abs/1503.02531. Both
    sides' logits are divided by a temperature, so that what the reference holds possible counts beside what it holds
    true. The reference's logits are converted to the head's own first, so that what is learnt are probabilities of the
    classes, comparable between workers.
    """
    weight, temperature, device = plan.recipe.distil, plan.recipe.temperature, plan.device
    y = torch.from_numpy(plan.dataset.y).to(device if weight < 1 else "cpu")
    if teacher is None and teacher_logits is None and weight > 0:
        teacher = make_teacher(plan)

    def loss(batch: Batch, logits: Tensor) -> Tensor:
        total = logits.new_zeros(())
        if weight < 1:
            total = total + (1 - weight) * head.loss(logits, labels_as(head, plan, classes, y[batch.indices]))
        if weight > 0:
            if teacher_logits is not None and batch.views is not None:
                known = teacher_logits.of(batch.indices, batch.views)
            else:
                assert teacher is not None
                known = teacher(batch.x)
            soft = head.probabilities(head.own_logits(known, classes) / temperature)
            total = total + weight * temperature**2 * head.loss(logits / temperature, soft)
        return total

    return loss
