"""Looks at all files of a bundle together: what its input is, what its classes are, and which subnets they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from export.existing.as_is import AsIs, as_is
from export.existing.as_is import samples as samples_of
from export.existing.file_input import FileInput, fit, own_shape
from export.existing.file_outputs import LEAST
from export.existing.given_file import GivenFile, Original, read
from export.existing.inputs import input_spec, normalisations
from export.existing.members import Member
from export.existing.options import BundleOptions
from export.existing.samples import RANDOM, Data, RawInputs, random_inputs, ready
from export.existing.subnets import HALF_TOLERANCE, Numbers, Subnet, build, choose_output, decide, difference
from export.existing.wrap import input_name
from sensai_serve.assignment import Assignment, explicit
from sensai_serve.errors import InputError, ModelError
from sensai_serve.merge import MergePlan
from sensai_serve.merge.lost_workers import ScoredInputs, accuracy
from sensai_serve.preprocess import InputSpec, Normalisation, normalise
from sensai_serve.progress import OnProgress
from sensai_serve.tensors import Array, Inputs

SAMPLES = 64
"""Inputs that files are examined with."""
TRIED = 300
"""Labelled inputs that show how raw numbers are normalised."""
SHOWN = 4
"""The most means or deviations that are shown."""


@dataclass(frozen=True)
class Examined:
    """What the files of a bundle are."""

    specs: tuple[InputSpec, ...]
    """The bundle's inputs."""
    labels: tuple[str, ...]
    subnets: tuple[Subnet, ...]
    """Of each file, that of the reference last where there is one."""
    networks: tuple[bytes, ...]
    """Their ONNX files."""
    samples: Inputs
    """Inputs, ready for the network."""
    numbers: tuple[Numbers, ...]
    """What the outputs of each given file are for the samples."""
    random: bool
    """Whether the samples are random."""
    tried: Mapping[str, float] = field(default_factory=dict)
    """Accuracy by normalisation, where labelled data had to show which one is right."""


def examine(
    members: Sequence[Member],
    labels: Sequence[str] | None,
    data: Data | RawInputs | None,
    options: BundleOptions,
    on_progress: OnProgress,
) -> Examined:
    """Read the files, run them, and make their subnets.

    Args:
        members: the files.
        labels: of the classes; those of the data, or of a file that names its own, where None.
        data: labelled inputs, or a function that gives inputs alone; None for random ones.
        options: what the user says.
        on_progress: called with the name of a stage, steps done and steps in all.

    Raises:
        InputError: a file cannot be taken, files disagree, or the labels or the data do not fit them.
    """
    given = [read(member.source, member.name) for member in members]
    labelled = data if isinstance(data, Data) else None
    found_labels, tried = _labels(labels, labelled, given), dict[str, float]()
    takes = as_is(given, options)
    if takes is not None:
        specs = takes[0].specs
        files = _Files(members, given, takes, found_labels, options)
    else:
        files, spec = _of_numbers(members, given, found_labels, labelled, options)
        spec, tried = _normalise(files, spec, labelled, options)
        specs = (spec,)
    samples = _samples(specs, given, data, options)
    numbers = files.numbers(samples)
    made = list[tuple[Subnet, bytes]]()
    for subnet, found in zip(files.subnets(numbers), numbers, strict=True):
        made.append(build(subnet, specs, samples, found))
        on_progress("files", len(made), len(members))
    if takes is not None and any(spec.maximum for spec in specs):
        _check_sizes(files, specs, [network for _, network in made], options.seed)
    return Examined(
        specs,
        files.labels,
        tuple(subnet for subnet, _ in made),
        tuple(network for _, network in made),
        samples,
        tuple(numbers),
        data is None,
        tried,
    )


def _of_numbers(
    members: Sequence[Member],
    given: Sequence[GivenFile],
    labels: tuple[str, ...],
    data: Data | None,
    options: BundleOptions,
) -> tuple[_Files, InputSpec]:
    """The files of a bundle of one input of numbers, which may be pictures, and that input but for its normalisation.

    Raises:
        InputError: what the user says does not fit, or files disagree.
    """
    own = [own_shape(one, options.shape) for one in given]
    spec = input_spec(given, own[0], data, options)
    takes = [
        fit(one, shape, spec.shape, options.layout, pictures=spec.image is not None, dtype=spec.dtype)
        for one, shape in zip(given, own, strict=True)
    ]
    spec = dataclasses.replace(spec, name=input_name(list(zip(given, takes, strict=True))))
    return _Files(members, given, takes, labels, options), spec


def _samples(
    specs: tuple[InputSpec, ...], given: Sequence[GivenFile], data: Data | RawInputs | None, options: BundleOptions
) -> Inputs:
    """Inputs that the files are examined with: some of the data, or random ones.

    Raises:
        DataError: the data is not what the files take.
    """
    if data is None:
        spec = specs[0]
        if len(specs) == 1 and not spec.maximum and spec.vocabulary is None and spec.dtype != "BOOL":
            return random_inputs(spec, given[0].element_type, options.seed)
        return samples_of(specs, RANDOM, options.seed)
    raw = data.x if isinstance(data, Data) else data(specs)
    drawn = np.sort(np.random.default_rng(options.seed).permutation(len(raw))[:SAMPLES])
    return ready(raw[drawn], specs, "the data")


def _check_sizes(files: _Files, specs: tuple[InputSpec, ...], networks: Sequence[bytes], seed: int) -> None:
    """Check that subnets agree with their files at the smallest and the largest size of dynamic axes.

    Raises:
        ModelError: one does not; files that were traced at one size often run at no other.
    """
    for length in (1, max(size for spec in specs for size in spec.maximum)):
        inputs = samples_of(specs, 2, seed, length)
        for subnet, found, network in zip(
            files.subnets(numbers := files.numbers(inputs)), numbers, networks, strict=True
        ):
            joined = np.concatenate([found[name] for name in subnet.gives.outputs], axis=1)
            off = difference(network, specs, inputs, subnet.gives.scores(joined))
            if not off <= HALF_TOLERANCE:
                raise ModelError(
                    f"{subnet.given.name} does not give the same at a size of {length}: its scores are {off:.2g} off"
                )


def assignment_of(rows: Sequence[tuple[int, ...]], n_classes: int) -> Assignment:
    """Who covers what: ``full`` where every worker covers every class, else ``explicit``.

    Raises:
        AssignmentError: some class is covered by no worker.
    """
    made = explicit(rows, n_classes)
    return dataclasses.replace(made, kind="full") if made.matrix.all() else made


@dataclass(frozen=True)
class _Files:
    members: Sequence[Member]
    given: Sequence[GivenFile]
    takes: Sequence[FileInput | AsIs]
    labels: tuple[str, ...]
    options: BundleOptions

    def numbers(self, inputs: Inputs) -> list[Numbers]:
        """What the outputs of each file are."""
        return [Original(one)(takes(inputs)) for one, takes in zip(self.given, self.takes, strict=True)]  # type: ignore[arg-type]

    def subnets(self, numbers: Sequence[Numbers]) -> list[Subnet]:
        """What the files become, judged by their numbers."""
        said = None if self.options.activation == "auto" else self.options.activation
        made = []
        for member, given, takes, found in zip(self.members, self.given, self.takes, numbers, strict=True):
            expected = len(self.labels) if member.classes is None else len(member.classes)
            outputs = choose_output(member, given, found, expected, self.options.output)
            made.append(decide(member, given, takes, found, self.labels, outputs, said, self.options.task))
        return made


def _labels(labels: Sequence[str] | None, data: Data | None, given: Sequence[GivenFile]) -> tuple[str, ...]:
    """The labels of the classes.

    Raises:
        InputError: nobody says them, or one is there twice.
    """
    found = labels if labels is not None else data.labels if data is not None else None
    if found is None:
        found = next((names for one in given for names in one.labels.values()), None)
    if found is None:
        raise InputError("no labels are given, expected --labels, a file with a label a line, or labelled data")
    if not found or len(set(found)) != len(found):
        raise InputError(
            f"labels are {', '.join(list(found)[:10]) or 'none'}, expected one of each class, all different"
        )
    return tuple(found)


def _normalise(
    files: _Files, spec: InputSpec, data: Data | None, options: BundleOptions
) -> tuple[InputSpec, dict[str, float]]:
    """The input with its normalisation: the one with which the files are right most often, where it is not known."""
    candidates = normalisations(files.given, spec, data, options)
    specs = [dataclasses.replace(spec, normalisation=one) for one in candidates]
    if len(specs) == 1 or data is None:
        return specs[0], {}
    some = data.some(TRIED, options.seed)
    fits = [_fit(files, one, some.x, some.y) for one in specs]
    best = max(range(len(specs)), key=lambda at: (fits[at].right, fits[at].likelihood))
    tried = {described(one): fit.right for one, fit in zip(candidates, fits, strict=True)}
    return specs[best], tried


@dataclass(frozen=True)
class _Fit:
    right: float
    """The fraction of merged answers that are right; of sets of labels the F1 over all of them."""
    likelihood: float
    """Mean log score of the true class; of sets of labels of what is true of each."""


def _fit(files: _Files, spec: InputSpec, x: Array, y: Array) -> _Fit:
    """How well the files do with a normalisation."""
    try:
        numbers = files.numbers(normalise(x, spec))
        subnets = files.subnets(numbers)
    except ModelError:
        return _Fit(0.0, -np.inf)
    scores = [
        subnet.gives.scores(np.concatenate([found[name] for name in subnet.gives.outputs], axis=1))
        for subnet, found in zip(subnets, numbers, strict=True)
    ]
    assignment = assignment_of([subnet.classes for subnet in subnets], len(files.labels))
    plan, truth = MergePlan(assignment, "mean", task=files.options.task), np.asarray(y, np.int64)
    inputs = ScoredInputs(plan, scores)
    if plan.task == "multilabel":
        means = np.clip(np.nanmean(inputs.copies, axis=1), LEAST, 1 - LEAST)  # [N, C]
        likelihood = float(np.log(np.where(truth > 0, means, 1 - means)).mean())
        return _Fit(accuracy(inputs.labels(), truth), likelihood)
    sums = np.nansum(inputs.copies, axis=1)  # [N, C]
    of_true = sums[np.arange(len(truth)), truth] / np.maximum(sums.sum(axis=1), LEAST)
    return _Fit(accuracy(inputs.labels(), truth), float(np.log(np.clip(of_true, LEAST, 1)).mean()))


def described(normalisation: Normalisation) -> str:
    """A normalisation in words."""
    if normalisation == Normalisation():
        return "numbers as they are"
    mean, std = (
        ",".join(f"{value:.4g}" for value in each) if len(each) <= SHOWN else f"{len(each)} numbers"
        for each in (normalisation.mean, normalisation.std)
    )
    moments = "" if (mean, std) == ("0", "1") else f", less a mean of {mean}, over a deviation of {std}"
    return f"numbers times {normalisation.scale:.4g}{moments}" if normalisation.scale != 1 else f"numbers{moments}"
