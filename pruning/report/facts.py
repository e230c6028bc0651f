"""The figures of a run's report: accuracy, confusion of classes, kept channels, and the cost of lost workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pruning.cutting.blocks import remove_blocks
from pruning.cutting.channels import ChannelGroup, find_channel_groups, kept_outputs
from pruning.grouping import Features
from pruning.grouping.tsne import embed
from pruning.merging import merge_plan
from pruning.planning.plan import classes_seen
from pruning.run import REFERENCE, Network, Run
from pruning.training.loop import infer
from sensai_serve.bundles import Bundle
from sensai_serve.errors import InputError
from sensai_serve.merge import merge
from sensai_serve.merge.lost_workers import AccuracyAtLoss, ScoredInputs, accuracy_curve
from sensai_serve.report.answers import GivenLabels

VALIDATION, TEST = "validation part", "test part"


@dataclass(frozen=True)
class Kept:
    """The output channels of the reference's layers that each worker has kept."""

    layers: tuple[str, ...]
    """Names of the layers that lose channels, or are gone, in some worker."""
    masks: tuple[npt.NDArray[np.bool_], ...]
    """One mask [W, channels of the reference's layer] per layer: who kept which channel."""

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Channels left, [L, W]."""
        return np.array([mask.sum(axis=1) for mask in self.masks], np.int64)

    @cached_property
    def totals(self) -> npt.NDArray[np.int64]:
        """Channels of the reference, [L]."""
        return np.array([mask.shape[1] for mask in self.masks], np.int64)

    @cached_property
    def overlap(self) -> npt.NDArray[np.float64]:
        """Intersection over union of two workers' channels, over all layers, [W, W]."""
        every = np.concatenate(self.masks, axis=1).astype(np.float64)  # [W, all channels]
        both = every @ every.T
        own = np.diag(both)
        return np.asarray(both / np.maximum(own[:, None] + own - both, 1))


@dataclass(frozen=True)
class Latency:
    """Median microseconds for one input on one core, each network alone, measured when the bundle was exported."""

    reference: float
    workers: tuple[float, ...]

    @classmethod
    def kept_by(cls, bundle: Bundle) -> Latency | None:
        """What a bundle says of it; None where it was exported without."""
        kept = bundle.manifest.provenance.get("latency_us")
        if not isinstance(kept, dict) or not isinstance(kept.get("subnets"), list):
            return None
        return cls(float(kept["reference"]), tuple(map(float, kept["subnets"])))


def networks(run: Run) -> list[Network]:
    """The networks of all workers, in their order.

    Raises:
        InputError: the run is not finished.
    """
    return [run.network(run.folder(worker)) for worker in range(run.assignment.n_workers)]


def validation_scores(run: Run) -> list[npt.NDArray[np.float32]]:
    """Every worker's scores [V, k] of the validation part.

    Raises:
        InputError: the run is not finished, or they are not of this data.
    """
    _, validation = run.split
    scores = [run.validation_scores(worker) for worker in range(run.assignment.n_workers)]
    for worker, (given, row) in enumerate(zip(scores, run.assignment.rows, strict=True)):
        if given.shape != (len(validation), len(row)):
            raise InputError(
                f"{run.path / run.folder(worker)}: validation.npy has shape {list(given.shape)}, "
                f"expected {[len(validation), len(row)]}"
            )
    return scores


def scored_validation(run: Run) -> ScoredInputs:
    """Every worker's scores of the validation part, to be merged by the rule that `sensai export` writes.

    Raises:
        InputError: the run is not finished, or the scores are not of this data.
    """
    return ScoredInputs(merge_plan(run), validation_scores(run))


def validation_answers(run: Run) -> GivenLabels:
    """Labels of the validation part from the reference and from the merged workers; the test part is not looked at."""
    dataset, (_, validation) = run.dataset, run.split
    scored = scored_validation(run)
    merged = scored.labels()
    logits = infer(run.load(REFERENCE).network, dataset, dataset.x[validation])
    answers = logits >= 0 if dataset.task == "multilabel" else logits.argmax(axis=1)
    given, own = answers.astype(np.int64), run.recipe.labels == "reference"
    answers = GivenLabels(VALIDATION, dataset.y[validation], given, merged, by_reference=own)
    if not answers.sets:
        return answers
    scores = merge(scored.plan, [np.asarray(each, np.float32) for each in scored.scores]).scores
    return replace(answers, reference_scores=logits, merged_scores=scores)


def kept_channels(run: Run) -> Kept:
    """The channels that each worker kept; of a layer in a dropped block, none."""
    reference, made = run.load(REFERENCE).network, networks(run)
    totals = {
        member.layer: int(member.positions.max()) + 1
        for group in find_channel_groups(reference, run.spec.shape)
        for member in group.producers
    }
    trimmed = {removed: _groups_without(run, removed) for removed in {network.removed for network in made}}
    masks = {layer: np.zeros((len(made), total), np.bool_) for layer, total in totals.items()}
    for worker, network in enumerate(made):
        groups = trimmed[network.removed]
        every = {group.layer: network.cut.get(group.layer, range(group.channels)) for group in groups}
        for layer, kept in kept_outputs(groups, {name: tuple(cut) for name, cut in every.items()}).items():
            if layer in masks:
                masks[layer][worker, kept] = True
    lost = [layer for layer, mask in masks.items() if not mask.all()] or list(masks)
    order = [name for name, _ in reference.named_modules()]
    lost.sort(key=order.index)
    return Kept(tuple(lost), tuple(masks[layer] for layer in lost))


def _groups_without(run: Run, removed: Sequence[str]) -> list[ChannelGroup]:
    reference = run.load(REFERENCE).network
    return find_channel_groups(
        remove_blocks(reference, removed, run.spec.shape) if removed else reference, run.spec.shape
    )


def class_map(run: Run) -> Features | None:
    """Position [C, 2] of each class in the t-SNE embedding that the grouping `tsne` goes by.

    None where there are fewer than four classes, too few to embed.
    """
    if len(run.labels) < 4:
        return None
    classes = classes_seen(run.recipe, run.dataset, run.load(REFERENCE).network)
    return embed(classes.features, run.recipe.seed)


def curve(run: Run) -> list[AccuracyAtLoss]:
    """Accuracy on the validation part against the number of lost workers."""
    _, validation = run.split
    return accuracy_curve(scored_validation(run), run.dataset.y[validation], seed=run.recipe.seed)
